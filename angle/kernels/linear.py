"""Linear layers for CPUs: float32 matrix products by oneDNN, which is faster than the BLAS in torch's wheels.

torch calls oneDNN only for bfloat16 products. There is no public function for float32 products: the one called here is
that of torch's compiler. In either precision, oneDNN generates a kernel for every number of rows that it meets, and
torch caches a thousand of them, half a megabyte each. So a batch's tokens are filled up to `even_rows`, and float32
matrices with other numbers of rows are multiplied in torch's own way.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from angle.kernels.autograd import forbid_double_backward

#: Leading bits of a row count that may vary: 32 values between a number and its double, and at most 3 % of filling.
BITS = 6
#: Number of tokens without a gradient from which it pays to write the weights in oneDNN's own layout. It is the same
#: for models of all sizes: the cost and the saving per token grow alike.
PAYS_FROM = 4096
#: Maximum bytes of weights that are held twice for this.
HELD_TWICE = 2**30


def even_rows(rows: int) -> int:
    """Round up to the next number that has no more than `BITS` bits from its first to its last 1."""
    step = 1 << max(0, rows.bit_length() - BITS)
    return -(-rows // step) * step


class _Multiply(torch.autograd.Function):
    """x W^T + b, and its gradient, for rows x (N, D_in)."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(values, weight)
        return _product(values, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        forbid_double_backward()
        (gradient,), (values, weight) = gradients, ctx.saved_tensors
        to_values, to_weight, to_bias = ctx.needs_input_grad
        return (
            _product(gradient, weight.t(), None) if to_values else None,
            gradient.t() @ values if to_weight else None,
            gradient.sum(0) if to_bias else None,
        )


def _product(values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(values, weight, bias, "none", [], "")
    return product


def multiply(values: Tensor, weight: Tensor) -> Tensor:
    """Return x W^T, (N, D_out), for rows x (N, D_in), without a graph."""
    fast = _is_faster(values, weight) and _is_available()
    return _product(values, weight, None) if fast else values @ weight.t()


def _is_available() -> bool:
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return available and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _is_faster(values: Tensor, weight: Tensor) -> bool:
    """Return whether oneDNN, if it is available, should multiply these rows."""
    if values.device.type != "cpu" or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False
    rows = values.shape[:-1].numel()
    return values.dtype == weight.dtype == torch.float32 and 0 < rows == even_rows(rows)


class CpuLinear(nn.Linear):
    """A linear layer that is fast on CPUs; elsewhere it is torch's."""

    #: The weights in oneDNN's own layout while texts are run without a gradient.
    packed: Tensor | None = None

    def forward(self, input: Tensor) -> Tensor:
        """Return x W^T + b, (..., D_out) for (..., D_in)."""
        if not _is_faster(input, self.weight):
            return super().forward(input)
        if self.packed is not None and not torch.is_grad_enabled():
            return _product(input, self.packed, self.bias)
        # As rows: with more dimensions, oneDNN returns a view, which the model could not modify in place.
        rows = input.reshape(-1, input.shape[-1])
        product: Tensor = _Multiply.apply(rows, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return product.view(*input.shape[:-1], -1)


def install_linear(model: nn.Module) -> None:
    """Turn every nn.Linear into a CpuLinear, keeping weights and hooks; quantised layers are of other classes."""
    if not _is_available():
        return
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = CpuLinear


def _is_packable(weight: Tensor) -> bool:
    """Return whether a weight is a float32 tensor on the CPU, and whole: not sharded (FSDP2)."""
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and not hasattr(weight, "full_tensor")


@contextmanager
def weights_packed(model: nn.Module, tokens: int) -> Iterator[None]:
    """Hold the weights in oneDNN's own layout too, if running `tokens` tokens without a gradient is worth it."""
    layers = []
    if tokens >= PAYS_FROM and not torch.is_autocast_enabled("cpu"):
        linear = [module for module in model.modules() if isinstance(module, CpuLinear)]
        layers = [one for one in linear if _is_packable(one.weight)]
    if sum(layer.weight.nbytes for layer in layers) > HELD_TWICE:
        layers = []
    try:
        for layer in layers:
            layer.packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), PAYS_FROM)
        yield
    finally:
        for layer in layers:
            layer.packed = None
