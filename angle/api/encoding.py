"""What one call of `AnglE.encode` asks for: its tokenizer, its depth and its dimensions."""

from __future__ import annotations

import copy

from angle.errors import ConfigError
from angle.modeling.encoder import Encoder
from angle.modeling.tokenizer import TextTokenizer
from angle.prompts import NAMED_PROMPTS, check_role


def tokenizer_for(
    encoder: Encoder, max_length: int | None, end_with_eos: bool | None, prompt: str | None, role: str | None = None
) -> TextTokenizer:
    """Return the model's own text tokenizer, or one with other options where these are given.

    Raises:
        ConfigError: a maximum length that leaves no room for a text, or that the model has no positions for; a role
            that is unknown, or given beside a template.

    """
    default = encoder.tokenizer
    if role is not None:
        if prompt is not None:
            raise ConfigError(f"prompt={prompt!r} and role={role!r} both choose the template: give one of them.")
        check_role(role, default.prompts)
        default = default.named(role)
    if max_length is None and end_with_eos is None and prompt is None:
        return default
    limit = encoder.position_limit
    if max_length is not None and max_length < 2:
        raise ConfigError(f"max_length={max_length} cannot work: it must be at least 2.")
    if max_length is not None and limit is not None and max_length > limit:
        raise ConfigError(
            f"max_length={max_length} cannot work: the model has positions for {limit} tokens; give {limit} or less."
        )
    template = default.prompt if prompt is None else NAMED_PROMPTS.get(prompt, prompt) or None
    other_end = end_with_eos is not None and end_with_eos != default.ends_with_end_token
    tokenizer, end_token = (copy.deepcopy(default.tokenizer), end_with_eos) if other_end else (default.tokenizer, None)
    return TextTokenizer(tokenizer, max_length or default.max_length, template, end_token, default.num_embeddings)


def depth_for(encoder: Encoder, layer_index: int) -> int | None:
    """Return the number of layers to run; None for all.

    Raises:
        ConfigError: the model has fewer.

    """
    if layer_index == -1:
        return None
    if not 0 <= layer_index <= encoder.layer_selector.num_layers:
        raise ConfigError(
            f"layer_index={layer_index} cannot work: the model has {encoder.layer_selector.num_layers} layers; give "
            f"a number up to "
            f"that, or -1 for all."
        )
    return layer_index


def dimensions_for(encoder: Encoder, embedding_start: int, embedding_size: int | None) -> slice:
    """Return the dimensions to keep.

    Raises:
        ConfigError: the model's embeddings do not have them, or there are none.

    """
    available = encoder.dimensions - embedding_start
    size = available if embedding_size is None else embedding_size
    if not (embedding_start >= 0 and 1 <= size <= available):
        raise ConfigError(
            f"embedding_start={embedding_start} and embedding_size={embedding_size} cannot work: the model's "
            f"embeddings have {encoder.dimensions} dimensions; give a start below that, and a size of at most what is "
            f"left, or leave them out."
        )
    return slice(embedding_start, embedding_start + size)
