"""A model's layers: truncation, and states at several depths.

The states at depth n are those of the model truncated after its first n layers, final norm included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from angle.errors import ConfigError

#: Selects the states (1, T, D) or (N, L, D), at one or several depths, from a model's output.
StateSelector = Callable[[Any], list[Tensor]]


def last_hidden_states(output: Any) -> list[Tensor]:
    """Select the states after the last layer."""
    return [output.last_hidden_state]


def base_model(backbone: Any) -> Any:
    """Return the model underneath its adapters."""
    return backbone.get_base_model() if hasattr(backbone, "peft_config") else backbone


def find_layers(backbone: Any) -> tuple[nn.Module, str, nn.ModuleList]:
    """Return the module that holds the layers, the name it holds them under, and the layers.

    Raises:
        ConfigError: there is no list of as many layers as the configuration says.

    """
    model = base_model(backbone)
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == model.config.num_hidden_layers:
            parent, _, attribute = name.rpartition(".")
            return model.get_submodule(parent), attribute, module
    raise ConfigError(
        f"{type(model).__name__} has no list of layers, so it can only be used as a whole: type ese=none, and leave "
        f"out ese_grid and model.layers."
    )


def truncate_layers(backbone: Any, depth: int) -> None:
    """Keep only the model's first layers.

    Raises:
        ConfigError: `depth` is more layers than the model has, or none.

    """
    parent, attribute, layers = find_layers(backbone)
    if not 1 <= depth <= len(layers):
        raise ConfigError(f"model.layers={depth} cannot work: the model has {len(layers)}; choose 1 to {len(layers)}.")
    setattr(parent, attribute, layers[:depth])
    config = base_model(backbone).config
    layer_types = getattr(config, "layer_types", None)
    config.num_hidden_layers = depth
    if layer_types is not None:
        config.layer_types = layer_types[:depth]


class LayerStateSelector:
    """Makes functions that select the states at several depths from a model's output."""

    def __init__(self, backbone: Any) -> None:
        """Find out how the states between layers become those of a model that ends there.

        Some models leave them as they are, others apply a final norm. Running the model without its last layer shows
        which it is.

        Raises:
            ConfigError: it is neither.

        """
        parent, attribute, layers = find_layers(backbone)
        self.num_layers = len(layers)
        norms = [module for module in parent.children() if "norm" in type(module).__name__.lower()]
        self._norm: nn.Module | None = None
        if self.num_layers == 1:
            return
        was_training = backbone.training
        backbone.eval()
        try:
            intermediate = _probe(backbone).hidden_states[self.num_layers - 1]
            setattr(parent, attribute, layers[:-1])
            final = _probe(backbone).last_hidden_state
        finally:
            setattr(parent, attribute, layers)
            backbone.train(was_training)
        with torch.no_grad():
            matching = [
                norm
                for norm in (None, *norms)
                if _is_close(intermediate if norm is None else norm(intermediate), final)
            ]
        if not matching:
            raise ConfigError(
                f"The states between the layers of {type(base_model(backbone)).__name__} are not those of a model that "
                f"ends there, so a smaller model could not give them: type ese=none, and leave out ese_grid and "
                f"model.layers."
            )
        self._norm = matching[0]

    def at_depths(self, depths: Sequence[int]) -> StateSelector:
        """Return a function that selects the states at these depths."""

        def states_at(depth: int, output: Any) -> Tensor:
            if depth == self.num_layers:
                return last_hidden_states(output)[0]
            intermediate: Tensor = output.hidden_states[depth]
            return intermediate if self._norm is None else self._norm(intermediate)

        return lambda output: [states_at(depth, output) for depth in depths]


@torch.no_grad()
def _probe(backbone: Any) -> Any:
    """Return the model's output for a short text."""
    ids = torch.arange(1, 9, device=backbone.device).remainder(backbone.config.vocab_size)[None]
    return backbone(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True)


def _is_close(states: Tensor, expected: Tensor) -> bool:
    return bool((states - expected).float().norm() <= 1e-2 * expected.float().norm())
