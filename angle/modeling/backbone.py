"""A model's weights and its tokenizer, loaded and checked."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import struct
from functools import partial
from typing import TYPE_CHECKING, Any

from angle.config import ModelConfig
from angle.errors import ConfigError, first_line
from angle.modeling.description import TINY, SelfDescription, split_gguf
from angle.modeling.packing import position_offset, position_table
from angle.modeling.quantization import keep_weight_layout, loading_options, own_device
from angle.modeling.tiny import tiny_model, tiny_tokenizer
from angle.modeling.token_embeddings import known_tokens
from angle.modeling.tokenizer import DEFAULT_MAX_LENGTH, TextTokenizer, ends_in_words, special_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_tokenizer(
    config: ModelConfig, name: str, said: SelfDescription, pooling: str, model: PreTrainedModel
) -> TextTokenizer:
    """Return a model's tokenizer, following the contract given by the settings and the model's own description.

    Args:
        config: settings that are given override what the model says.
        name: the model's located folder or hub name.
        said: what the model says about itself.
        pooling: the pooling strategy.
        model: the model that reads the tokens.

    Raises:
        ConfigError: there is no tokenizer, it writes texts differently than in the model's training, or it cannot
            follow the settings.

    """
    from transformers import AutoTokenizer

    if config.tokenizer_name_or_path is None and name == TINY:
        tokenizer = tiny_tokenizer()
    else:
        try:
            place, file = split_gguf(config.tokenizer_name_or_path or name)
            tokenizer = AutoTokenizer.from_pretrained(
                place,
                **({"gguf_file": file} if file else {}),
                revision=config.revision,
                trust_remote_code=config.trust_remote_code,
            )
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(
                f"No tokenizer could be loaded from {config.tokenizer_name_or_path or name}: "
                f"{first_line(error)}. Give one by model.tokenizer_name_or_path=..."
            ) from None
    tokenizer.padding_side = config.padding_side or said.padding_side or tokenizer.padding_side
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if pooling == "last" and tokenizer.pad_token is not None and tokenizer.pad_token == tokenizer.eos_token:
        if config.padding_side == "right":
            raise ConfigError(
                f"model.padding_side=right cannot work with pooling.strategy=last: {tokenizer.pad_token} both pads and "
                f"ends texts, so other software would take the end of a text for padding; type model.padding_side=left."
            )
        tokenizer.padding_side = "left"
    limit = position_limit(model)
    own_limit = min(DEFAULT_MAX_LENGTH, limit or DEFAULT_MAX_LENGTH)
    max_length = config.max_length or said.max_length or own_limit
    if limit is not None and max_length > limit:
        raise ConfigError(
            f"model.max_length={max_length} cannot work: the model has positions for {limit} "
            f"tokens; type model.max_length={limit}."
        )
    prompt = config.prompt if config.prompt is not None else said.prompt
    own = special_tokens(tokenizer)
    if config.end_token is None and said.special_tokens not in (None, own):
        raise ConfigError(
            f"{name} was trained on texts {_written(said.special_tokens)}, but its tokenizer now writes "
            f"{_written(own)}: give the right one by model.tokenizer_name_or_path=..."
        )
    end_token = config.end_token
    if end_token is None and said.pooling != "last" and pooling == "last" and not ends_in_words(prompt):
        # Otherwise, an embedding would be the state of whatever word a text happens to end with.
        end_token = True if tokenizer.eos_token and not own[1] else None
    return TextTokenizer(tokenizer, max_length, prompt, end_token, partial(known_tokens, model))


def _written(special_tokens: tuple[tuple[str, ...], tuple[str, ...]] | None) -> str:
    before, after = special_tokens or ((), ())
    return " ".join((*before, "...", *after))


def load_backbone(config: ModelConfig, name: str, bits: int | None = None) -> PreTrainedModel:
    """Return the bare model (no language-model head), weights loaded, in evaluation mode.

    Args:
        config: how to load it.
        name: its folder or hub name.
        bits: 4 or 8 to quantise the weights of linear layers to that many bits.

    Raises:
        ConfigError: there is nothing to load, weights are missing, or settings contradict the architecture.

    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModel

    if name == TINY:
        if bits is not None:
            raise ConfigError(f"model.load_kbit={bits} cannot work with tiny, which is small enough: leave it out.")
        return tiny_model()
    place, file = split_gguf(name)
    dtype = config.dtype if config.dtype == "auto" else getattr(torch, config.dtype)
    options = loading_options(bits, own_device()) if file is None else _gguf_options(name, file, bits)
    # The GGUF reader shows its own progress bars.
    quiet = contextlib.nullcontext() if file is None else contextlib.redirect_stderr(io.StringIO())
    try:
        with quiet:
            model, report = AutoModel.from_pretrained(
                place,
                revision=config.revision,
                trust_remote_code=config.trust_remote_code,
                dtype=dtype,
                attn_implementation=config.attn_implementation,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported below, in one sentence
                **options,
            )
    except (OSError, ValueError, KeyError, ImportError, SafetensorError, struct.error) as error:
        raise ConfigError(
            f"model.name_or_path={name} could not be loaded: {first_line(error)}. Give a hub name or a "
            f"folder with config.json and model.safetensors."
        ) from None
    if bits == 4:
        keep_weight_layout(model)
    missing = sorted(key for key in report["missing_keys"] if "pooler" not in key and "position_ids" not in key)
    mismatched = sorted(name for name, *_ in report["mismatched_keys"])
    if missing or mismatched:
        example = (missing or mismatched)[0]
        raise ConfigError(
            f"model.name_or_path={name} does not fit its config.json: {len(missing)} weights are missing "
            f"and {len(mismatched)} have another shape, {example} for one. Those would "
            f"start at random; give the right folder."
        )
    if model.config.is_encoder_decoder:
        raise ConfigError(
            f"model.name_or_path={name} cannot work: {type(model).__name__} is an encoder with a decoder behind it; "
            f"choose an encoder such as bert_base or a decoder such as qwen3_0.6b."
        )
    if config.attn_implementation is None and getattr(model.config, "attn_logit_softcapping", None) is not None:
        model.set_attn_implementation("eager")  # transformers 5.17 chooses sdpa, which would leave scores uncapped
    is_llm = is_decoder(model)
    if config.is_llm is not None and config.is_llm != is_llm:
        raise ConfigError(
            f"model.is_llm={str(config.is_llm).lower()} contradicts the model: "
            f"{type(model).__name__} is {'a decoder' if is_llm else 'an encoder'}; leave it out."
        )
    return model


def _gguf_options(name: str, file: str, bits: int | None) -> dict[str, Any]:
    """Return the options with which transformers' `from_pretrained` reads a GGUF file and dequantises its weights.

    Raises:
        ConfigError: the package that reads such files is missing, or another quantisation is asked for.

    """
    if importlib.util.find_spec("gguf") is None:
        raise ConfigError(f"model.name_or_path={name} needs the package gguf: type pip install -e '.[gguf]'.")
    if bits is not None:
        raise ConfigError(
            f"model.load_kbit={bits} cannot work with {file}, whose weights are quantised in another way: make plain "
            f"ones of them by python convert.py model.name_or_path={name} output_dir=plain, and train with "
            f"model.name_or_path=plain."
        )
    from transformers import GgufConfig

    return {"gguf_file": file, "quantization_config": GgufConfig(dequantize=True)}


def is_decoder(model: PreTrainedModel) -> bool:
    """Return whether the architecture is a decoder: transformers has a causal LM head for it, but no masked one."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    kind = model.config.model_type
    return kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Let the model keep only each layer's input, and recompute the rest in the backward pass."""
    # renamed in the course of transformers 5
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def position_limit(model: PreTrainedModel) -> int | None:
    """Return how many tokens the model has positions for; None if they are rotary or relative, without a table."""
    limit: int | None = getattr(model.config, "max_position_embeddings", None)
    if limit is None or position_table(model) is None:
        return None
    return limit - position_offset(model)
