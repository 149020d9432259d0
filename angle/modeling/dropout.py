"""How much a model drops while it trains."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from angle.modeling.probing import call_options, differ, probe_ids

#: How the attributes end in which attention keeps the probability as a number.
NAMES = ("dropout", "dropout_p", "dropout_prob", "pdrop")
#: Tokens of the text that is tried.
TRIED_TOKENS = 9


class _Place(NamedTuple):
    """Where a model keeps a probability of dropout."""

    module: nn.Module
    attribute: str
    probability: float
    is_of_adapter: bool
    """Whether it is LoRA's own, lora.dropout."""

    def set(self, probability: float) -> None:
        setattr(self.module, self.attribute, probability)


def set_dropout(backbone: Any, probability: float) -> bool:
    """Set the probability of dropout wherever the model has it; its configuration, and its adapters' dropout, stay.

    Args:
        backbone: the model.
        probability: at least 0 and below 1.

    Returns:
        Whether all of it was found: with 0, two passes of training agree. If not, nothing is changed.

    """
    places = list(_places(backbone))
    for place in places:
        place.set(0.0)
    is_found = _is_deterministic(backbone)
    for place in places:
        place.set(probability if is_found and not place.is_of_adapter else place.probability)
    return is_found


def _places(backbone: nn.Module) -> Iterator[_Place]:
    for path, module in backbone.named_modules():
        is_layer = isinstance(module, _DropoutNd)
        for name, value in vars(module).items():
            is_number = isinstance(value, float | int) and not isinstance(value, bool)
            if is_number and (name == "p" if is_layer else name.endswith(NAMES)):
                yield _Place(module, name, value, "lora_" in path)


def _is_deterministic(backbone: Any) -> bool:
    """Return whether two passes in training mode give the same states; the mode is kept."""
    ids, was_training = probe_ids(backbone, TRIED_TOKENS)[None], backbone.training
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **call_options(backbone)}
    backbone.train()
    try:
        with torch.no_grad():
            one, other = (backbone(**inputs).last_hidden_state for _ in range(2))
    finally:
        backbone.train(was_training)
    return not differ(one, other)
