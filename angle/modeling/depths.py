"""Depths: the states at depth n are those of the model truncated after its first n layers, final norm included."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from angle.errors import ConfigError

#: Takes the states (1, T, D) or (N, L, D), at one or several depths, out of a model's output.
Take = Callable[[Any], list[Tensor]]


def last_states(output: Any) -> list[Tensor]:
    """Take the states of the last layer."""
    return [output.last_hidden_state]


def bare(backbone: Any) -> Any:
    """Return the model underneath its adapters."""
    return backbone.get_base_model() if hasattr(backbone, "peft_config") else backbone


def layers_of(backbone: Any) -> tuple[nn.Module, str, nn.ModuleList]:
    """Return the module that holds the layers, the name it holds them under, and the layers.

    Raises:
        ConfigError: there is no list of as many layers as the configuration says.

    """
    model = bare(backbone)
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == model.config.num_hidden_layers:
            path, _, attribute = name.rpartition(".")
            return model.get_submodule(path), attribute, module
    raise ConfigError(
        f"{type(model).__name__} has no list of layers, so that it can be used as a whole alone: type ese=none, "
        f"and leave out ese_grid and model.layers."
    )


def cut(backbone: Any, depth: int) -> None:
    """Keep only the model's first layers.

    Raises:
        ConfigError: `depth` is more layers than the model has, or none.

    """
    holder, attribute, layers = layers_of(backbone)
    if not 1 <= depth <= len(layers):
        raise ConfigError(f"model.layers={depth} cannot work: the model has {len(layers)}; choose 1 to {len(layers)}.")
    setattr(holder, attribute, layers[:depth])
    config = bare(backbone).config
    kinds = getattr(config, "layer_types", None)
    config.num_hidden_layers = depth
    if kinds is not None:
        config.layer_types = kinds[:depth]


class Depths:
    """Takes the states at several depths out of a model's output."""

    def __init__(self, backbone: Any) -> None:
        """Find out how the states between layers become those of a model that ends there.

        Some models leave them as they are, others apply a final norm. Running the model without its last layer shows
        which it is.

        Raises:
            ConfigError: it is neither.

        """
        holder, attribute, layers = layers_of(backbone)
        self.layers = len(layers)
        norms = [module for module in holder.children() if "norm" in type(module).__name__.lower()]
        self._norm: nn.Module | None = None
        if self.layers == 1:
            return
        was_training = backbone.training
        backbone.eval()
        try:
            between = _run(backbone).hidden_states[self.layers - 1]
            setattr(holder, attribute, layers[:-1])
            at_the_end = _run(backbone).last_hidden_state
        finally:
            setattr(holder, attribute, layers)
            backbone.train(was_training)
        with torch.no_grad():
            fitting = [
                norm for norm in (None, *norms) if _close(between if norm is None else norm(between), at_the_end)
            ]
        if not fitting:
            raise ConfigError(
                f"The states between the layers of {type(bare(backbone)).__name__} are not those of a model that ends "
                f"there, so a smaller model could not give them: type ese=none, and leave out ese_grid and "
                f"model.layers."
            )
        self._norm = fitting[0]

    def take(self, depths: Sequence[int]) -> Take:
        """Return a function that takes the states at these depths."""

        def states(output: Any, depth: int) -> Tensor:
            if depth == self.layers:
                return last_states(output)[0]
            between: Tensor = output.hidden_states[depth]
            return between if self._norm is None else self._norm(between)

        return lambda output: [states(output, depth) for depth in depths]


@torch.no_grad()
def _run(backbone: Any) -> Any:
    ids = torch.arange(1, 9, device=backbone.device).remainder(backbone.config.vocab_size)[None]
    return backbone(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True)


def _close(found: Tensor, wanted: Tensor) -> bool:
    return bool((found - wanted).float().norm() <= 1e-2 * wanted.float().norm())
