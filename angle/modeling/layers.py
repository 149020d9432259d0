"""A model's layers: truncation, and states at several depths.

The states at depth n are those of the model truncated after its first n layers, final norm included.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from angle.errors import ConfigError, first_line

#: Selects the states (1, T, D) or (N, L, D), at one or several depths, from a model's output.
StateSelector = Callable[[Any], list[Tensor]]

#: Attributes in which modules keep the number of layers, and those that a run sets.
LAYER_COUNTS = ("n_layer", "n_layers", "num_layers", "num_hidden_layers")
SET_BY_RUNS = ("training", "gradient_checkpointing", "p")


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
    if depth == len(layers):
        return
    if (problem := loading_problem(backbone, depth)) is not None:
        raise ConfigError(
            f"model.layers={depth} cannot work with {type(base_model(backbone)).__name__}: a model of so many layers "
            f"would not load once it is saved ({problem}); leave the setting out."
        )
    setattr(parent, attribute, layers[:depth])
    model = base_model(backbone)
    for module in model.modules():  # XLNet and others keep the number of layers beside the configuration
        for name, value in list(vars(module).items()):
            if type(value) is int and value == len(layers) and name in LAYER_COUNTS:
                setattr(module, name, depth)
    _truncate_config(model.config, depth)


def check_depths(backbone: Any) -> None:
    """Check that the models that end between the layers could be saved and loaded.

    Raises:
        ConfigError: they could not.

    """
    for depth in sorted({1, max(1, len(find_layers(backbone)[2]) - 1)}):
        if (problem := loading_problem(backbone, depth)) is not None:
            raise ConfigError(
                f"ese.enabled=true cannot work with {type(base_model(backbone)).__name__}: a model of its first layers "
                f"alone, here {depth}, would not load once it is saved ({problem}); type ese=none."
            )


def loading_problem(backbone: Any, depth: int) -> str | None:
    """Return why a model's first layers would not load once they are saved, None if they would.

    The configuration is written, read and made into a model without weights, which must have the layers' parameters.
    """
    model = base_model(backbone)
    parent, attribute, layers = find_layers(backbone)
    config = copy.deepcopy(model.config)
    try:
        _truncate_config(config, depth)
        with tempfile.TemporaryDirectory() as folder, torch.device("meta"):
            config.save_pretrained(folder)
            loaded = type(model)(type(config).from_pretrained(folder))
    except Exception as error:  # whatever fewer layers contradict
        return first_line(error.__cause__ or error)
    setattr(parent, attribute, layers[:depth])
    try:
        saved, expected = _parameter_shapes(model), _parameter_shapes(loaded)
        numbers, expected_numbers = _numbers(model), _numbers(loaded)
    finally:
        setattr(parent, attribute, layers)
    if saved.keys() != expected.keys():
        return f"{min(saved.keys() ^ expected.keys())} is not where the configuration says"
    different = [name for name, shape in saved.items() if shape is not None and shape != expected[name]]
    if different:
        return f"{different[0]} is of another shape than the configuration says"
    # Some models scale every layer by the number of layers: its own would not be what it was trained with.
    changed = [name for name in numbers.keys() & expected_numbers.keys() if numbers[name] != expected_numbers[name]]
    return f"{min(changed)} would be {expected_numbers[min(changed)]}" if changed else None


def _parameter_shapes(model: nn.Module) -> dict[str, torch.Size | None]:
    """Return the parameters' shapes by name, without adapters; None for quantised ones, whose shapes say nothing."""
    return {
        name.replace(".base_layer.", "."): parameter.shape if parameter.is_floating_point() else None
        for name, parameter in model.named_parameters()
        if ".lora_" not in name
    }


def _numbers(model: nn.Module) -> dict[str, float]:
    """Return the numbers that modules hold, such as scales, by name; not those that a run may change."""
    return {
        f"{name}.{attribute}": value
        for name, module in model.named_modules()
        for attribute, value in vars(module).items()
        if type(value) in (bool, int, float) and attribute not in (*SET_BY_RUNS, *LAYER_COUNTS)
    }


def _truncate_config(config: Any, depth: int) -> None:
    """Let a configuration, and whatever it lists layer by layer, describe the first layers alone."""
    available = config.num_hidden_layers
    config.num_hidden_layers = depth
    for name, value in list(vars(config).items()):
        if isinstance(value, (list, tuple)) and len(value) == available:
            setattr(config, name, value[:depth])


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
