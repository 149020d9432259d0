"""A model's weights, loaded and checked."""

from __future__ import annotations

import contextlib
import importlib.util
import io
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from angle.config import ModelConfig
from angle.errors import ConfigError, first_line
from angle.modeling import adapters
from angle.modeling.bidirectional import is_bidirectional_by_config
from angle.modeling.consistency import check_files, check_weights
from angle.modeling.embedding_config import EmbeddingConfig
from angle.modeling.layers import truncate_layers
from angle.modeling.locations import TINY, split_gguf
from angle.modeling.model_sources import ModelSources
from angle.modeling.quantization import dequantize, keep_weight_layout, process_device, quantization_kwargs
from angle.modeling.tiny import tiny_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_backbone(config: ModelConfig, name: str, load_kbit: int | None = None) -> PreTrainedModel:
    """Return the model without a language-model head, weights loaded, in evaluation mode.

    Args:
        config: how to load it.
        name: its folder or hub name.
        load_kbit: 4 or 8 to quantise the weights of linear layers to that many bits.

    Raises:
        ConfigError: there is nothing to load, weights are missing, or settings contradict the architecture.

    """
    if name == TINY:
        if load_kbit is not None:
            raise ConfigError(
                f"model.load_kbit={load_kbit} cannot work with tiny, which is small enough: leave it out."
            )
        return tiny_model()
    check_files(name, config.revision)
    model, loading_info = _from_pretrained(config, name, load_kbit)
    check_weights(name, config.revision, model, loading_info)
    _check_architecture(name, model)
    if config.attn_implementation is None and getattr(model.config, "attn_logit_softcapping", None) is not None:
        model.set_attn_implementation("eager")  # transformers 5.17 chooses sdpa, which would leave scores uncapped
    return model


def load_weights(
    model: ModelConfig, sources: ModelSources, embedding_config: EmbeddingConfig, load_kbit: int | None, *, merged: bool
) -> Any:
    """Return the transformers model, with the layers that its adapter has weights for, and with the adapter merged."""
    backbone = load_backbone(replace(model, revision=sources.base_revision), sources.base, load_kbit)
    sources.check_base(embedding_config)
    if embedding_config.layers is not None:
        truncate_layers(backbone, embedding_config.layers)
    if merged and sources.saved_adapters:
        plain = backbone if load_kbit is None else dequantize(backbone)
        backbone = adapters.merge_adapters(plain, sources.saved_adapters)
    return backbone


def _from_pretrained(
    config: ModelConfig, name: str, load_kbit: int | None
) -> tuple[PreTrainedModel, dict[str, list[Any]]]:
    """Return the model, and which of its weights were missing or of another shape."""
    import torch
    from transformers import AutoModel

    folder, gguf_file = split_gguf(name)
    is_gguf = gguf_file is not None
    kwargs = _gguf_kwargs(name, load_kbit) if is_gguf else quantization_kwargs(load_kbit, process_device())
    try:
        # The GGUF reader shows its own progress bars.
        with contextlib.redirect_stderr(io.StringIO()) if is_gguf else contextlib.nullcontext():
            model, loading_info = AutoModel.from_pretrained(
                folder,
                revision=config.revision,
                trust_remote_code=config.trust_remote_code,
                dtype=config.dtype if config.dtype == "auto" else getattr(torch, config.dtype),
                attn_implementation=config.attn_implementation,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported by `check_weights`, in one sentence
                **kwargs,
            )
    except Exception as error:  # whatever a damaged file, or a number in config.json, leads to in there
        reason = first_line(error)
        if "Weights only load failed" in reason:  # torch goes on to say how to run what is in the file
            reason = "its .bin file holds more than weights, which is not run here"
        raise ConfigError(
            f"model.name_or_path={name} could not be loaded: {reason}. Give a hub name or a "
            f"folder with config.json and model.safetensors."
        ) from error
    if load_kbit == 4:
        keep_weight_layout(model)
    return model, loading_info


def _check_architecture(name: str, model: PreTrainedModel) -> None:
    """Raise ConfigError for an encoder-decoder."""
    if model.config.is_encoder_decoder:
        raise ConfigError(
            f"model.name_or_path={name} cannot work: {type(model).__name__} is an encoder with a decoder behind it; "
            f"choose an encoder such as bert_base or a decoder such as qwen3_0.6b."
        )


def _gguf_kwargs(name: str, load_kbit: int | None) -> dict[str, Any]:
    """Return the arguments with which `from_pretrained` reads the GGUF file `name` and dequantises its weights.

    Raises:
        ConfigError: the package that reads such files is missing, or another quantisation is asked for.

    """
    gguf_file = split_gguf(name)[1]
    if importlib.util.find_spec("gguf") is None:
        raise ConfigError(f"model.name_or_path={name} needs the package gguf: type pip install -e '.[gguf]'.")
    if load_kbit is not None:
        raise ConfigError(
            f"model.load_kbit={load_kbit} cannot work with {gguf_file}, whose weights are quantised already: "
            f"make them plain weights by python convert.py model.name_or_path={name} output_dir=plain, and train with "
            f"model.name_or_path=plain."
        )
    from transformers import GgufConfig

    return {"gguf_file": gguf_file, "quantization_config": GgufConfig(dequantize=True)}


def resolve_direction(is_llm: bool | None, model: PreTrainedModel, *, is_causal: bool | None) -> bool:
    """Return whether the model is a decoder: causal, or made bidirectional by a switch in its configuration.

    Args:
        is_llm: `model.is_llm`.
        model: the model.
        is_causal: what it was seen to be; None if that cannot be seen.

    Raises:
        ConfigError: the setting contradicts the model.

    """
    is_decoder = _has_causal_head(model) if is_causal is None or is_bidirectional_by_config(model.config) else is_causal
    if is_llm is not None and is_llm != is_decoder:
        raise ConfigError(
            f"model.is_llm={str(is_llm).lower()} contradicts the model: "
            f"{type(model).__name__} is {'a decoder' if is_decoder else 'an encoder'}; leave it out."
        )
    return is_decoder


def _has_causal_head(model: PreTrainedModel) -> bool:
    """Return whether transformers has a causal head for the architecture, but no masked one."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    model_type = model.config.model_type
    return model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def freeze_pooler(model: PreTrainedModel) -> None:
    """Freeze the head that transformers puts on an encoder: saved folders have it, but no gradient ever reaches it."""
    for name, parameter in model.named_parameters():
        if "pooler" in name:
            parameter.requires_grad_(False)


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Let the model keep only each layer's input, and recompute the rest in the backward pass.

    Raises:
        ConfigError: its architecture cannot.

    """
    if not model.supports_gradient_checkpointing:
        raise ConfigError(
            f"model.gradient_checkpointing=true cannot work with {type(model).__name__}, which transformers cannot "
            f"recompute: leave it out, and save memory by train.token_budget=8192."
        )
    # renamed in the course of transformers 5
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
