"""Which kernels a run uses."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from angle.modeling.kernel_choice import kernels_to_skip_from_main_process


def run_kernels_to_skip(packing: str, model: nn.Module, requested: Sequence[str] | None) -> dict[str, str]:
    """Return the kernels to skip, each with the reason. Every process must call this, and all get the same.

    Args:
        packing: `train.packing`.
        model: the model, before any kernel is installed.
        requested: `model.kernels`.

    """
    return kernels_to_skip_from_main_process(model, requested) | (
        {"packing": "train.packing=off"} if packing == "off" else {}
    )
