"""A layer's low-rank adapter as one operation, with its own backward pass.

peft computes it as a dozen: under autocast it casts a layer's input to the adapter's float32, drops some of it there
and casts it back, and what is left is saved, for each layer that shares the input. Here the input itself is saved, once
for all of them, beside one byte per element for dropout; what is left of it is computed again in the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from angle.kernels.autograd import forbid_double_backward
from angle.kernels.dropout import drop, drop_again
from angle.kernels.linear import multiply
from angle.kernels.mixin import add_mixin

#: Device types on which dropout can be repeated; "meta" has shapes only, to predict memory.
DROPOUT_ON = ("cpu", "cuda", "meta")


class _AddLowRank(torch.autograd.Function):
    """y + s (drop(x) A^T) B^T: the layer's own output y (..., D_out), with the adapter's part for x (..., D_in).

    A is (r, D_in), B is (D_out, r) (Hu et al., "LoRA", arXiv:2106.09685). All products are computed in `kind`.
    """

    @staticmethod
    def forward(
        ctx: Any, output: Tensor, values: Tensor, down: Tensor, up: Tensor, scaling: float, p: float, kind: torch.dtype
    ) -> Tensor:
        a, b = down.to(kind), up.to(kind)
        rows = values.flatten(0, -2).to(kind)
        dropped, kept = drop(rows, p) if p else (rows, None)
        inner = multiply(dropped, a).mul_(scaling)
        _, _, to_down, to_up, *_ = ctx.needs_input_grad
        ctx.save_for_backward(values if to_down else None, kept, inner if to_up else None, a, b)
        ctx.scaling, ctx.p, ctx.kinds = scaling, p, (values.dtype, down.dtype, up.dtype)
        # Into the layer's output, unless it is a view, which autograd forbids, or rows of it would be copies.
        if output.dtype == kind and output.is_contiguous() and not output._is_view():
            ctx.mark_dirty(output)
            output.flatten(0, -2).addmm_(inner, b.t())
            return output
        return (output + multiply(inner, b).view_as(output)).to(output.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        forbid_double_backward()
        (gradient,), (values, kept, inner, a, b) = gradients, ctx.saved_tensors
        _, to_values, to_down, to_up, *_ = ctx.needs_input_grad
        of_values = of_down = of_up = None
        rows = gradient.flatten(0, -2).to(a.dtype)
        of_inner = multiply(rows, b.t()).mul_(ctx.scaling)
        if to_values:
            of_dropped = multiply(of_inner, a.t())
            of_rows = of_dropped if kept is None else drop_again(of_dropped, kept, ctx.p)
            of_values = of_rows.view(*gradient.shape[:-1], -1).to(ctx.kinds[0])
        if to_down:
            dropped = values.flatten(0, -2).to(a.dtype)
            if kept is not None:
                dropped = drop_again(dropped, kept, ctx.p)
            of_down = (of_inner.t() @ dropped).to(ctx.kinds[1])
        if to_up:
            of_up = (rows.t() @ inner).to(ctx.kinds[2])
        return gradient, of_values, of_down, of_up, None, None, None


class _Adapted:
    """What the fast variants of peft's layers share; comes before one of their classes."""

    def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return (..., D_out) for x (..., D_in), as peft does."""
        if args or kwargs or self.disable_adapters or self.merged or not _is_plain(self, x):
            slow: Tensor = super().forward(x, *args, **kwargs)  # type: ignore[misc]
            return slow
        output: Tensor = self.base_layer(x)
        for name in self.active_adapters:
            if name in self.lora_A:
                down, up, dropout = self.lora_A[name].weight, self.lora_B[name].weight, self.lora_dropout[name]
                p = dropout.p if isinstance(dropout, nn.Dropout) and dropout.training else 0.0
                kind = _computed_in(x.device.type) or down.dtype
                output = _AddLowRank.apply(output, x, down, up, self.scaling[name], p, kind)  # type: ignore[no-untyped-call]
        return output


def _computed_in(device: str) -> torch.dtype | None:
    """Return the dtype of autocast on a type of device, None without it."""
    return torch.get_autocast_dtype(device) if device != "meta" and torch.is_autocast_enabled(device) else None


def _is_plain(layer: Any, values: Tensor) -> bool:
    """Return whether the layer's adapters are what `_AddLowRank` computes."""
    return (
        values.device.type in DROPOUT_ON
        and values.dim() > 1
        and not torch.compiler.is_compiling()
        and not layer.lora_variant
        and all(up.bias is None for up in layer.lora_B.values())
        and all(getattr(dropout, "p", 0) < 1 for dropout in layer.lora_dropout.values())
    )


def install_lora(model: nn.Module) -> None:
    """Let every adapter on a linear layer, quantised or not, run as one operation."""
    from peft.tuners.lora import LoraLayer

    for module in model.modules():
        if isinstance(module, LoraLayer) and isinstance(module.base_layer, nn.Linear):
            add_mixin(_Adapted, module)
