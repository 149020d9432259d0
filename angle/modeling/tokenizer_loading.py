"""A model's tokenizer, loaded and set up by the settings given and those saved with the model."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from angle.config import ModelConfig
from angle.errors import ConfigError, first_line, is_failure
from angle.modeling.embedding_config import EmbeddingConfig, SpecialTokens
from angle.modeling.locations import TINY, split_gguf
from angle.modeling.special_tokens import special_tokens_around
from angle.modeling.tiny import tiny_tokenizer
from angle.modeling.token_embeddings import num_token_embeddings
from angle.modeling.tokenizer import DEFAULT_MAX_LENGTH, TextTokenizer, ends_with_literal
from angle.modeling.tokenizer_files import check_tokenizer_files
from angle.prompts import PROMPT_NAMES

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_tokenizer(
    config: ModelConfig,
    name: str,
    embedding_config: EmbeddingConfig,
    pooling: str,
    backbone: PreTrainedModel,
    position_limit: int | None = None,
) -> TextTokenizer:
    """Return a model's tokenizer, set up by the settings given and those saved with the model.

    Args:
        config: settings that are given override the saved ones.
        name: the model's located folder or hub name.
        embedding_config: the settings saved with the model.
        pooling: the pooling strategy.
        backbone: the model that reads the tokens.
        position_limit: how many tokens it has positions for; None for any number.

    Raises:
        ConfigError: there is no tokenizer, it writes texts differently than in the model's training, or it cannot
            follow the settings.

    """
    tokenizer = _load_pretrained(config, name)
    if embedding_config.lower_case:
        _lower_case(tokenizer)
    special_tokens = special_tokens_around(tokenizer)
    if not config.end_token and embedding_config.special_tokens not in (None, special_tokens):
        raise ConfigError(
            f"{name} was trained on texts {_pattern(embedding_config.special_tokens)}, but its tokenizer now writes "
            f"{_pattern(special_tokens)}: give the right one by model.tokenizer_name_or_path=..."
        )
    prompt = config.prompt if config.prompt is not None else embedding_config.prompt
    prompts = {**(embedding_config.prompts or {}), **config.prompts}
    end_token = config.end_token or None
    newly_last = pooling == "last" and embedding_config.pooling != "last"
    if config.end_token is None and newly_last and not ends_with_literal(prompt):
        # Otherwise, an embedding would be the state of whatever word a text happens to end with.
        end_token = True if tokenizer.eos_token and not special_tokens[1] else None
    max_length = _max_length(config, embedding_config, position_limit)
    num_embeddings = partial(num_token_embeddings, backbone)
    text_tokenizer = TextTokenizer(tokenizer, max_length, prompt, end_token, num_embeddings, prompts)
    for name in PROMPT_NAMES:
        text_tokenizer.named(name)  # what cannot work is said now
    text_tokenizer.lower_case = embedding_config.lower_case
    _set_padding(text_tokenizer, config, embedding_config, pooling)
    return text_tokenizer


def _load_pretrained(config: ModelConfig, name: str) -> Any:
    """Return the transformers tokenizer."""
    from transformers import AutoTokenizer

    if config.tokenizer_name_or_path is None and name == TINY:
        return tiny_tokenizer()
    source = config.tokenizer_name_or_path or name
    folder, gguf_file = split_gguf(source)
    check_tokenizer_files(source, config.revision)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder,
            **({"gguf_file": gguf_file} if gguf_file else {}),
            revision=config.revision,
            trust_remote_code=config.trust_remote_code,
        )
        tokenizer("")  # some settings are looked at only here
        return tokenizer
    except BaseException as error:  # whatever a damaged file leads to in there
        if not is_failure(error):
            raise
        raise ConfigError(
            f"No tokenizer could be loaded from {source}: {first_line(error)}. Give one by "
            f"model.tokenizer_name_or_path=..."
        ) from error


def _set_padding(
    text_tokenizer: TextTokenizer, config: ModelConfig, embedding_config: EmbeddingConfig, pooling: str
) -> None:
    """Set the side on which a tokenizer pads, and its padding token if it has none."""
    tokenizer = text_tokenizer.tokenizer
    tokenizer.padding_side = config.padding_side or embedding_config.padding_side or tokenizer.padding_side
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if pooling == "last" and tokenizer.pad_token is not None and tokenizer.pad_token == tokenizer.eos_token:
        if config.padding_side != "right":
            tokenizer.padding_side = "left"
        elif text_tokenizer.ends_with_end_token:
            raise ConfigError(
                f"model.padding_side=right cannot work with pooling.strategy=last: {tokenizer.pad_token} both pads and "
                f"ends texts, so other software would take the end of a text for padding; type model.padding_side=left."
            )


def _lower_case(tokenizer: Any) -> None:
    """Let a tokenizer lower-case texts before all else, unless it does so already."""
    from tokenizers.normalizers import Lowercase, Sequence

    backend = tokenizer.backend_tokenizer
    if backend.normalizer is None or backend.normalizer.normalize_str("A") != "a":
        backend.normalizer = Sequence([Lowercase(), *([backend.normalizer] if backend.normalizer else [])])


def _max_length(config: ModelConfig, embedding_config: EmbeddingConfig, limit: int | None) -> int:
    """Return the maximum number of tokens of a text, for a model with positions for `limit` tokens."""
    default = min(DEFAULT_MAX_LENGTH, limit or DEFAULT_MAX_LENGTH)
    saved = embedding_config.max_length and min(embedding_config.max_length, limit or embedding_config.max_length)
    max_length = config.max_length or saved or default
    if limit is not None and max_length > limit:
        raise ConfigError(
            f"model.max_length={max_length} cannot work: the model has positions for {limit} "
            f"tokens; type model.max_length={limit}."
        )
    return max_length


def _pattern(special_tokens: SpecialTokens | None) -> str:
    """Return how a text is written between its special tokens, such as "<s> ... </s>"."""
    prefix, suffix = special_tokens or ((), ())
    return " ".join((*prefix, "...", *suffix))
