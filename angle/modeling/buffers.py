"""Persistent buffers: what is saved of a model beside its weights. Most are constants, some are running statistics."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from angle.modeling.probing import call_options, probe_ids

#: Number of tokens of the text that is run, for which every model has positions.
NUM_TOKENS = 8


def persistent_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Return the buffers of a model that are saved with it, by name."""
    return {
        f"{prefix}.{name}".removeprefix("."): buffer
        for prefix, module in model.named_modules()
        for name, buffer in module.named_buffers(recurse=False)
        if name not in module._non_persistent_buffers_set
    }


def running_statistics(backbone: Any) -> list[str]:
    """Return the names of persistent buffers that a forward pass changes in training; the model stays as it is.

    Args:
        backbone: a model without adapters.

    """
    before = {name: buffer.clone() for name, buffer in persistent_buffers(backbone).items()}
    if not before:
        return []
    was_training = backbone.training
    backbone.train()
    try:
        ids = probe_ids(backbone, NUM_TOKENS)[None]
        with torch.random.fork_rng([ids.device] if ids.is_cuda else []), torch.no_grad():
            backbone(input_ids=ids, attention_mask=torch.ones_like(ids), **call_options(backbone))
        after = persistent_buffers(backbone)
        changed = [name for name, buffer in before.items() if not torch.equal(after[name], buffer)]
        for name in changed:
            after[name].copy_(before[name])
    finally:
        backbone.train(was_training)
    return changed
