"""A layer's low-rank adapter as one operation, with its own backward pass.

peft computes it as a dozen: under autocast it casts a layer's input to the adapter's float32, drops some of it there
and casts it back, and what is left is saved, for each layer that shares the input. Here the input itself is saved, once
for all of them, beside one byte per element for dropout; the dropped-out input is computed again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from angle.kernels.autograd import forbid_double_backward
from angle.kernels.dropout import drop, reapply_dropout
from angle.kernels.kernel import Kernel
from angle.kernels.linear import CpuLinear, cpu_linear
from angle.kernels.mixin import NO_MODULE, add_mixin
from angle.kernels.operators import missing_operator

#: Device types on which dropout can be repeated; "meta" has shapes only, to predict memory.
SUPPORTED_DEVICES = ("cpu", "cuda", "meta")

#: Returns x W^T, as torch.nn.functional.linear, for x (N, D_in) and W (D_out, D_in).
LinearFunction = Callable[[Tensor, Tensor], Tensor]


class _AddLowRank(torch.autograd.Function):
    """y + s (drop(x) A^T) B^T: the layer's own output y (..., D_out), with the adapter's part for x (..., D_in).

    A is (r, D_in), B is (D_out, r) (Hu et al., "LoRA", arXiv:2106.09685). All products are computed in `dtype`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        output: Tensor,
        x: Tensor,
        lora_a: Tensor,
        lora_b: Tensor,
        scaling: float,
        p: float,
        dtype: torch.dtype,
        linear_function: LinearFunction,
    ) -> Tensor:
        a, b = lora_a.to(dtype), lora_b.to(dtype)
        rows = x.flatten(0, -2).to(dtype)
        dropped, keep_mask = drop(rows, p) if p else (rows, None)
        low_rank = linear_function(dropped, a).mul_(scaling)
        _, _, needs_a, needs_b, *_ = ctx.needs_input_grad
        ctx.save_for_backward(x if needs_a else None, keep_mask, low_rank if needs_b else None, a, b)
        ctx.scaling, ctx.p, ctx.linear_function, ctx.dtypes = (
            scaling,
            p,
            linear_function,
            (x.dtype, lora_a.dtype, lora_b.dtype),
        )
        # Into the layer's output, unless it is a view, which autograd forbids, or rows of it would be copies.
        if output.dtype == dtype and output.is_contiguous() and not output._is_view():
            ctx.mark_dirty(output)
            output.flatten(0, -2).addmm_(low_rank, b.t())
            return output
        return (output + linear_function(low_rank, b).view_as(output)).to(output.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        forbid_double_backward()
        (grad,), (x, keep_mask, low_rank, a, b) = gradients, ctx.saved_tensors
        _, needs_x, needs_a, needs_b, *_ = ctx.needs_input_grad
        grad_x = grad_a = grad_b = None
        grad_rows = grad.flatten(0, -2).to(a.dtype)
        grad_low_rank = ctx.linear_function(grad_rows, b.t()).mul_(ctx.scaling)
        if needs_x:
            grad_dropped = ctx.linear_function(grad_low_rank, a.t())
            if keep_mask is not None:
                grad_dropped = reapply_dropout(grad_dropped, keep_mask, ctx.p)
            grad_x = grad_dropped.view(*grad.shape[:-1], -1).to(ctx.dtypes[0])
        if needs_a:
            dropped = x.flatten(0, -2).to(a.dtype)
            if keep_mask is not None:
                dropped = reapply_dropout(dropped, keep_mask, ctx.p)
            grad_a = (grad_low_rank.t() @ dropped).to(ctx.dtypes[1])
        if needs_b:
            grad_b = (grad_rows.t() @ low_rank).to(ctx.dtypes[2])
        return grad, grad_x, grad_a, grad_b, None, None, None, None


class _FusedLora:
    """A mixin for peft's LoRA layers, whose adapters it computes as one operation each."""

    def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return (..., D_out) for x (..., D_in), as peft does."""
        if args or kwargs or self.disable_adapters or self.merged or not _is_supported(self, x):
            peft_output: Tensor = super().forward(x, *args, **kwargs)  # type: ignore[misc]
            return peft_output
        output: Tensor = self.base_layer(x)
        for name in self.active_adapters:
            if name in self.lora_A:
                lora_a, lora_b, dropout = self.lora_A[name], self.lora_B[name], self.lora_dropout[name]
                p = dropout.p if isinstance(dropout, nn.Dropout) and dropout.training else 0.0
                dtype = _autocast_dtype(x.device.type) or lora_a.weight.dtype
                linear_function = cpu_linear if isinstance(lora_a, CpuLinear) else _torch_linear
                output = _AddLowRank.apply(  # type: ignore[no-untyped-call]
                    output, x, lora_a.weight, lora_b.weight, self.scaling[name], p, dtype, linear_function
                )
        return output


def _torch_linear(x: Tensor, weight: Tensor) -> Tensor:
    """Return x W^T, as `cpu_linear` does where the kernel `linear` is not installed."""
    return x @ weight.t()


def _autocast_dtype(device: str) -> torch.dtype | None:
    """Return the dtype of autocast on a type of device, None without it."""
    return torch.get_autocast_dtype(device) if device != "meta" and torch.is_autocast_enabled(device) else None


def _is_supported(layer: Any, x: Tensor) -> bool:
    """Return whether the layer's adapters are what `_AddLowRank` computes."""
    return (
        x.device.type in SUPPORTED_DEVICES
        and x.dim() > 1
        and not torch.compiler.is_compiling()
        and not layer.lora_variant
        and all(lora_b.bias is None for lora_b in layer.lora_B.values())
        and all(getattr(dropout, "p", 0) < 1 for dropout in layer.lora_dropout.values())
    )


def install_lora(model: nn.Module) -> str | None:
    """Let every adapter on a linear layer, quantised or not, run as one operation; return why not if it cannot."""
    if not hasattr(model, "peft_config"):
        return NO_MODULE
    if (reason := missing_operator("aten.native_dropout_backward")) is not None:
        return reason
    from peft.tuners.lora import LoraLayer

    layers = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
    adapted = [layer for layer in layers if isinstance(layer.base_layer, nn.Linear)]
    for layer in adapted:
        add_mixin(_FusedLora, layer)
    return None if adapted else NO_MODULE


KERNEL = Kernel(
    "lora",
    "Computes a layer's low-rank adapter as one operation that saves less for the backward pass.",
    ("cpu", "cuda"),
    "peft's adapters on linear layers",
    install_lora,
)
