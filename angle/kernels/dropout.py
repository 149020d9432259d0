"""Dropout, on CPUs with the same distribution as torch's, drawn about nine times as fast.

torch draws a float for every element. Here one draw of 64 bits decides four elements: each is kept if its 16 bits, as a
signed number, reach a threshold. They come from torch's default generator, so seeds and saved RNG states apply.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Size, Tensor, nn

from angle.kernels.kernel import Kernel
from angle.kernels.mixin import NO_MODULE

#: Number of values that an element's 16 bits can take; the element is kept for a fraction of them.
INT16_VALUES = 2**16


def keep_probability(p: float) -> float:
    """Return the fraction of elements that is really kept when `p` is to be dropped: 1 - p to within 1 / 131072."""
    return 1 - round(p * INT16_VALUES) / INT16_VALUES


def draw_keep_mask(shape: Size, p: float) -> Tensor:
    """Return uint8: 1 for elements that are kept, 0 with probability `p`, which must be below 1."""
    keep_mask = torch.empty(shape, dtype=torch.uint8)
    # The lower bound is given because, without one, only 63 of the 64 bits are random.
    bits = torch.empty(-(-keep_mask.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    random_int16 = bits.view(torch.int16)[: keep_mask.numel()].view(shape)
    return torch.ge(random_int16, round(p * INT16_VALUES) - INT16_VALUES // 2, out=keep_mask)


def drop(values: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """Set elements to 0 with probability `p`, above 0 and below 1, and scale the others.

    Returns:
        The values, and which were kept: one byte per element, for `reapply_dropout`.

    """
    if values.device.type != "cpu":
        return torch.native_dropout(values, p, True)
    keep_mask = draw_keep_mask(values.shape, p)
    return reapply_dropout(values, keep_mask, p), keep_mask


def reapply_dropout(values: Tensor, keep_mask: Tensor, p: float) -> Tensor:
    """Return the values with the elements of an earlier `drop` set to 0 and the others scaled: also its gradient."""
    if values.device.type != "cpu":
        dropped: Tensor = torch.ops.aten.native_dropout_backward(values, keep_mask, 1 / (1 - p))
        return dropped
    return keep_mask.to(values.dtype).mul_(values).mul_(1 / keep_probability(p))


class _Drop(torch.autograd.Function):
    """Set elements to 0 and scale the others; one byte per element is saved for the backward pass."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, p: float) -> Tensor:
        dropped, keep_mask = drop(values, p)
        ctx.save_for_backward(keep_mask)
        ctx.p = p
        return dropped

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,), (keep_mask,) = grads, ctx.saved_tensors
        return reapply_dropout(grad, keep_mask, ctx.p), None


class CpuDropout(nn.Dropout):
    """Dropout that is fast on CPUs; elsewhere it is torch's."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the values with some set to 0 and the others scaled, so that the mean is preserved."""
        if not self.training or input.device.type != "cpu" or not 0 < self.p < 1 or self.inplace:
            return super().forward(input)
        dropped: Tensor = _Drop.apply(input, self.p)  # type: ignore[no-untyped-call]
        return dropped


def install_dropout(model: nn.Module) -> str | None:
    """Replace every nn.Dropout, which has no saved state, with CpuDropout; return why not if there is none."""
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if type(module) is nn.Dropout:
                setattr(parent, name, CpuDropout(module.p, module.inplace).train(module.training))
    return None if any(type(module) is CpuDropout for module in model.modules()) else NO_MODULE


KERNEL = Kernel("dropout", "Draws dropout from 16 random bits an element.", ("cpu",), "nn.Dropout", install_dropout)
