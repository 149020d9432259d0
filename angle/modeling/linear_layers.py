"""The linear layers of a model that adapters can be put on, and how a saved adapter names them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from angle.modeling.probing import call_options, probe_ids
from angle.modeling.trials import is_proved

#: Number of tokens of short texts: as few as `trials.observe` runs, since every model has positions for them; and of
#: the longest one.
NUM_TOKENS, MAX_TOKENS = 8, 512


def find_linear_layers(backbone: Any, max_length: int = NUM_TOKENS) -> list[str]:
    """Return the names of the linear layers that the states of a text come from, with a gradient.

    Models have others too: poolers, heads, vision parts, layers that choose what attention looks at, and layers whose
    weights are used without them. An adapter there would never be trained, or break the model.

    Some layers are reached by some texts only. If two texts of one length reach different ones, the tokens decide, as
    with experts: then all that differ in their number alone are adapted, for a few tokens do not reach every expert.
    Otherwise the length decides, as where so many tokens are compressed into one (DeepSeek V4), or nothing does, as
    where layers share a block and each uses a part of it (Zamba 2): then those that the longest text reaches are.

    Args:
        backbone: a model without adapters.
        max_length: number of tokens of the longest text.

    """
    from transformers.pytorch_utils import Conv1D

    layers = {name: module for name, module in backbone.named_modules() if isinstance(module, (nn.Linear, Conv1D))}
    ids = probe_ids(backbone, max(2 * NUM_TOKENS, min(max_length, MAX_TOKENS)))
    reached = _reached(backbone, layers, ids[:NUM_TOKENS])
    routed: set[str] = set()
    if len(reached) < len(layers) and not is_proved(backbone):
        others = _reached(backbone, layers, ids[NUM_TOKENS : 2 * NUM_TOKENS])
        routed = {_kind(name) for name in reached ^ others}
        reached |= others
        with suppress(Exception):  # what fails on long texts is refused by the trial of layouts
            reached |= _reached(backbone, layers, ids[:max_length])
    return [name for name in layers if name in reached or _kind(name) in routed]


def _reached(backbone: Any, layers: Mapping[str, Any], ids: Tensor) -> set[str]:
    """Return the names of the layers that the states of a text, tokens (L,), depend on.

    A zero is added to what each layer returns: it has a gradient where an adapter would have one in training, for which
    some models have another way (Gemma 3n uses weights without their layer).
    """
    from transformers.pytorch_utils import Conv1D

    zeros: dict[str, Tensor] = {}

    def add_zero(name: str, layer: Any, arguments: tuple[Any, ...], output: Any) -> Any:
        width = layer.nf if isinstance(layer, Conv1D) else layer.out_features
        # Routers and grouped layers are linear layers by class, but return something else.
        if not arguments or not isinstance(output, Tensor) or output.shape != (*arguments[0].shape[:-1], width):
            return output
        zero = zeros.setdefault(name, torch.zeros((), dtype=output.dtype, device=output.device, requires_grad=True))
        return output + zero

    hooks = [
        layer.register_forward_hook(lambda *call, name=name: add_zero(name, *call)) for name, layer in layers.items()
    ]
    was_training = backbone.training
    backbone.train()
    try:
        with torch.random.fork_rng([ids.device] if ids.is_cuda else []), torch.enable_grad():
            states = backbone(
                input_ids=ids[None], attention_mask=torch.ones_like(ids[None]), **call_options(backbone)
            ).last_hidden_state
            gradients = torch.autograd.grad(states.float().norm(), list(zeros.values()), allow_unused=True)
    finally:
        backbone.train(was_training)
        for hook in hooks:
            hook.remove()
    return {name for name, gradient in zip(zeros, gradients, strict=True) if gradient is not None}


def _kind(name: str) -> str:
    """Return a module's name without numbers."""
    return re.sub(r"\b\d+\b", "*", name)


def shortest_endings(backbone: nn.Module, names: Collection[str]) -> list[str]:
    """Return the shortest endings of modules' names that no other module's name has, such as "q_proj"."""
    wanted = set(names)
    others = {ending for name, _ in backbone.named_modules() if name not in wanted for ending in _endings(name)}
    return sorted({next((ending for ending in _endings(name) if ending not in others), name) for name in names})


def _endings(name: str) -> list[str]:
    """Return what a name ends with, the shortest first: "c", "b.c", "a.b.c"."""
    parts = name.split(".")
    return [".".join(parts[start:]) for start in range(len(parts) - 1, -1, -1)]
