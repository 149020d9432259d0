"""BiLLM: decoder layers that attend in both directions, by means of hooks on the stock model.

Each call of the decoder builds the bidirectional masks and passes them along in its keyword arguments, so that a layer
that is rerun in the backward pass (gradient checkpointing) sees the masks of its own batch. From the first
bidirectional layer on, layers use them in place of the causal mask. No transformers code is copied or replaced. Hooks
are not saved with a model, so that layer's index is saved in its angle_config.json, and they are registered again when
it is loaded.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from angle.config import BillmConfig
from angle.errors import ConfigError
from angle.modeling.embedding_config import EmbeddingConfig
from angle.modeling.probing import differ

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: The keyword argument in which the masks, by window, reach the layers.
_MASKS = "_angle_bidirectional_masks"


def make_bidirectional(decoder: PreTrainedModel, first_layer: int) -> None:
    """Let the decoder's layers with index >= `first_layer` attend in both directions.

    Raises:
        ConfigError: the model's layers are not found.

    """
    layers = decoder_layers(decoder)
    windows = [attention_window(decoder.config, index) for index in range(len(layers))]

    def build_masks(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, kwargs | {_MASKS: _bidirectional_masks(decoder, kwargs, set(windows[first_layer:]))}

    decoder.register_forward_pre_hook(build_masks, with_kwargs=True)
    for layer in layers[:first_layer]:
        layer.register_forward_pre_hook(_remove_bidirectional_masks, with_kwargs=True)
    for layer, window in zip(layers[first_layer:], windows[first_layer:], strict=True):
        layer.register_forward_pre_hook(_use_mask(window), with_kwargs=True)


def first_bidirectional_layer(
    backbone: Any, billm: BillmConfig | None, embedding_config: EmbeddingConfig, *, is_llm: bool, num_layers: int | None
) -> int | None:
    """Return the first bidirectional layer: from the settings, else from the model, else None.

    Args:
        backbone: the model.
        billm: the settings.
        embedding_config: the settings saved with the model.
        is_llm: whether it is a decoder.
        num_layers: how many of its first layers are kept; None for all.

    Raises:
        ConfigError: an encoder, a decoder of another class than the settings name, or a layer that it does not have.

    """
    if billm is None or not billm.enabled:
        return 0 if is_llm and is_bidirectional_by_config(backbone.config) else embedding_config.bidirectional_from
    if not is_llm:
        raise ConfigError(
            f"billm.enabled=true cannot work with {type(backbone).__name__}: an encoder attends in both directions "
            f"already; type billm=none."
        )
    if billm.model_class is not None:
        check_class(backbone, billm.model_class)
    available = len(decoder_layers(backbone))
    return billm.first_layer(available if num_layers is None else min(num_layers, available))


def check_class(decoder: PreTrainedModel, model_class: str) -> None:
    """Check that the decoder is of a class, ignoring case and any head in the name.

    Raises:
        ConfigError: it is of another class.

    """
    actual = type(decoder).__name__
    if _family(actual) != _family(model_class):
        raise ConfigError(
            f"billm.model_class={model_class} contradicts the model, which is a {actual}: give the right one, or "
            f"leave it out."
        )


def _family(class_name: str) -> str:
    """Return "llama" for LlamaModel and LlamaForCausalLM."""
    return re.sub(r"(for[a-z]+|model)$", "", class_name.lower())


def is_bidirectional_by_config(config: Any) -> bool:
    """Return whether a decoder's configuration lets all of its layers attend in both directions."""
    # The switch common to all decoders, and Gemma 3's own.
    return getattr(config, "is_causal", True) is False or getattr(config, "use_bidirectional_attention", None) is True


def bidirectional_switches(config: Any) -> list[dict[str, Any]]:
    """Return changes of a decoder's config.json, each of which may let all of its layers attend in both directions.

    Which one does is seen by trying; none is needed if the decoder attends so by its own configuration.
    """
    if is_bidirectional_by_config(config):
        return [{}]
    switches: list[dict[str, Any]] = [{"is_causal": False}]
    if config.model_type == "gemma3_text":  # has one of its own, with which windows are saved as wide to both sides
        width = 2 * (config.sliding_window - 1)
        switches.insert(0, {"use_bidirectional_attention": True, "sliding_window": width})
    return switches


def decoder_layers(decoder: PreTrainedModel) -> nn.ModuleList:
    """Return the decoder's layers.

    Raises:
        ConfigError: they are not where transformers keeps them.

    """
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise ConfigError(
            f"billm.enabled=true cannot work with {type(decoder).__name__}: it has no list of decoder layers; "
            f"type billm=none."
        )
    return layers


def attention_window(config: Any, layer: int) -> int | None:
    """Return the distance from which a layer's tokens do not attend to each other, None if they all do."""
    window: int | None = getattr(config, "sliding_window", None)
    layer_types = getattr(config, "layer_types", None)
    return window if layer_types is None or layer_types[layer] == "sliding_attention" else None


def _bidirectional_masks(
    decoder: PreTrainedModel, kwargs: dict[str, Any], windows: set[int | None]
) -> dict[int | None, Any]:
    """Return the mask for each window width."""
    from transformers.masking_utils import create_bidirectional_mask

    ids: Tensor = kwargs["input_ids"]
    # Only the shape, dtype and device of the embeddings are used.
    states = torch.empty(*ids.shape, 0, dtype=decoder.get_input_embeddings().weight.dtype, device=ids.device)
    masks = {}
    for window in windows:
        in_window = None if window is None else _within(window)
        masks[window] = create_bidirectional_mask(
            decoder.config, states, kwargs.get("attention_mask"), and_mask_function=in_window
        )
    return masks


def _within(window: int) -> Any:
    return lambda batch, head, query, key: (query - key).abs() < window


def _remove_bidirectional_masks(
    _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """Remove the masks, for a layer that does not use them."""
    del kwargs[_MASKS]
    return args, kwargs


def _use_mask(window: int | None) -> Any:
    """Return a hook that removes the masks, and uses the one for that window width."""

    def use(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        masks = kwargs.pop(_MASKS)
        return args, kwargs | {"attention_mask": masks[window], "is_causal": False}

    return use


@torch.no_grad()
def check_bidirectional_layers(backbone: Any, first_layer: int | None) -> None:
    """Check on the model itself that a later token changes earlier states in exactly the layers it should.

    Args:
        backbone: a decoder, with or without adapters.
        first_layer: the first layer that should attend in both directions, None for none.

    Raises:
        ConfigError: the attention masks do not match the settings.

    """
    device = next(backbone.parameters()).device
    was_training = backbone.training
    backbone.eval()
    try:
        ids = torch.arange(1, 9, device=device).remainder(backbone.config.vocab_size).repeat(2, 1)
        ids[1, -1] = 0  # the two texts differ only in their last token
        states = backbone(
            input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True, use_cache=False
        ).hidden_states
    finally:
        backbone.train(was_training)
    by_text = [_by_text(layer, ids.shape) for layer in states[1:]]
    changed = [differ(layer[0, :-1], layer[1, :-1]) for layer in by_text]
    actual = changed.index(True) if True in changed else None
    if actual != first_layer:
        raise ConfigError(
            f"{type(backbone).__name__} with model.attn_implementation={backbone.config._attn_implementation}: "
            f"attention masks do not match the settings. It attends in both directions {_from_layer(actual)}, but it "
            f"should {_from_layer(first_layer)}: try model.attn_implementation=eager, or billm=none."
        )


def _by_text(states: Tensor, shape: torch.Size) -> Tensor:
    """Return states as (N, L, ...): of several states a token, Gemma 3n's are (S, N, L, D), DeepSeek V4's (N, L, S, D).

    Args:
        states: those between two layers.
        shape: (N, L), of the tokens.

    """
    axis = next((axis for axis in range(states.ndim - 1) if states.shape[axis : axis + 2] == shape), 0)
    return states.movedim((axis, axis + 1), (0, 1))


def _from_layer(layer: int | None) -> str:
    return "in no layer" if layer is None else f"from layer {layer} on"
