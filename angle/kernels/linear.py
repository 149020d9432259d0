"""Linear layers for CPUs: float32 matrix products by oneDNN, which is faster than the BLAS in torch's wheels.

torch calls oneDNN only for bfloat16 products. There is no public function for float32 products: the one called here is
that of torch's compiler. In either precision, oneDNN generates a kernel for every number of rows that it meets, and
torch caches a thousand of them, half a megabyte each. So a batch is padded with dummy one-token texts to a number of
tokens that `round_up_rows` returns, and float32
matrices with other numbers of rows are multiplied in torch's own way.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from angle.kernels.autograd import forbid_double_backward
from angle.kernels.kernel import Benchmark, Kernel, Shapes
from angle.kernels.mixin import NO_MODULE
from angle.kernels.operators import missing_operator

#: Leading bits of a row count that may vary: 32 values between a number and its double, and at most 3 % of padding.
SIGNIFICANT_BITS = 6
#: Number of tokens without a gradient from which it pays to write the weights in oneDNN's own layout. It is the same
#: for models of all sizes: the cost and the saving per token grow alike.
PREPACK_MIN_TOKENS = 4096
#: Maximum bytes of weights that are held twice for this.
PREPACK_MAX_BYTES = 2**30
#: What is timed to see whether oneDNN is faster here: this many of the largest shapes, for the tokens of a usual batch,
#: or fewer of them for large layers, whose products take long enough to be timed anyway; and how often.
TIMED_SHAPES, TIMED_ROWS, MIN_TIMED_ROWS, MAX_TIMED_PRODUCTS = 3, 512, 64, 2**30
MEASUREMENTS, REPETITIONS = 3, 3


def round_up_rows(rows: int) -> int:
    """Round up to the next number that has no more than `SIGNIFICANT_BITS` bits from its first to its last 1."""
    step = 1 << max(0, rows.bit_length() - SIGNIFICANT_BITS)
    return -(-rows // step) * step


class _OneDnnLinear(torch.autograd.Function):
    """x W^T + b, and its gradient, for rows x (N, D_in)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _onednn_linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        forbid_double_backward()
        (grad,), (x, weight) = gradients, ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            _onednn_linear(grad, weight.t(), None) if needs_x else None,
            grad.t() @ x if needs_weight else None,
            grad.sum(0) if needs_bias else None,
        )


def _onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product


def cpu_linear(x: Tensor, weight: Tensor) -> Tensor:
    """Return x W^T, (N, D_out), for rows x (N, D_in), without a graph; for models with this kernel."""
    return _onednn_linear(x, weight, None) if _is_supported(x, weight) else x @ weight.t()


def _is_supported(x: Tensor, weight: Tensor) -> bool:
    """Return whether oneDNN, if it is available, should multiply these rows."""
    if x.device.type != "cpu" or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False
    rows = x.shape[:-1].numel()
    return x.dtype == weight.dtype == torch.float32 and 0 < rows == round_up_rows(rows)


class CpuLinear(nn.Linear):
    """A linear layer that is fast on CPUs; elsewhere it is torch's."""

    #: The weights in oneDNN's own layout while texts are run without a gradient.
    prepacked: Tensor | None = None

    def forward(self, input: Tensor) -> Tensor:
        """Return x W^T + b, (..., D_out) for (..., D_in)."""
        if not _is_supported(input, self.weight):
            return super().forward(input)
        if self.prepacked is not None and not torch.is_grad_enabled():
            return _onednn_linear(input, self.prepacked, self.bias)
        # As rows: with more dimensions, oneDNN returns a view, which the model could not modify in place.
        rows = input.reshape(-1, input.shape[-1])
        product: Tensor = _OneDnnLinear.apply(rows, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return product.view(*input.shape[:-1], -1)


#: The classes of layers that this kernel is for; quantised layers are of others, and stay as they are.
REPLACEABLE = (nn.Linear, CpuLinear)


def install_linear(model: nn.Module) -> str | None:
    """Turn every nn.Linear into a CpuLinear, keeping weights and hooks; return why not if it cannot."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return "this torch has no oneDNN"
    if (reason := missing_operator("mkldnn._linear_pointwise", "mkldnn._reorder_linear_weight")) is not None:
        return reason
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = CpuLinear
    return None if any(type(module) is CpuLinear for module in model.modules()) else NO_MODULE


def _is_local_float32(weight: Tensor) -> bool:
    """Return whether a weight is a float32 tensor on the CPU, and not sharded (FSDP2)."""
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and not hasattr(weight, "full_tensor")


def linear_shapes(model: nn.Module) -> Shapes:
    """Return (D_out, D_in) of the float32 linear layers on the CPU, each shape once, the largest first."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear) and type(module) in REPLACEABLE]
    shapes = {(layer.out_features, layer.in_features) for layer in layers if _is_local_float32(layer.weight)}
    return tuple(sorted(shapes, key=lambda shape: (-shape[0] * shape[1], shape)))


def gain_over_torch(shapes: Shapes) -> float:
    """Return the time of torch's own products over that of oneDNN's, forward and backward to the input.

    Measured on the largest shapes, which decide the time of a model. The gradient of the weights is computed in the
    same way by both. Of a few alternating repetitions the shortest counts, since whatever else runs on the machine can
    only make one longer; the result is the median of several such measurements. No random numbers are drawn.
    """
    shapes = shapes[:TIMED_SHAPES]
    rows = TIMED_ROWS
    while rows > MIN_TIMED_ROWS and rows * sum(d_out * d_in for d_out, d_in in shapes) > MAX_TIMED_PRODUCTS:
        rows //= 2
    inputs = [torch.linspace(-1, 1, rows * d_in).view(rows, d_in).requires_grad_() for _, d_in in shapes]
    weights = [torch.linspace(-1, 1, d_out * d_in).view(d_out, d_in) for d_out, d_in in shapes]

    def seconds(product: Callable[[Tensor, Tensor, None], Tensor]) -> float:
        start = time.perf_counter()
        for x, weight in zip(inputs, weights, strict=True):
            output = product(x, weight, None)
            torch.autograd.grad(output, x, output.detach())
        return time.perf_counter() - start

    gains: list[float] = []
    with torch.enable_grad(), torch.autocast("cpu", enabled=False):
        seconds(linear), seconds(_OneDnnLinear.apply)  # warm up: oneDNN generates its kernels
        for _ in range(MEASUREMENTS):
            times = [(seconds(linear), seconds(_OneDnnLinear.apply)) for _ in range(REPETITIONS)]
            torch_seconds, onednn_seconds = zip(*times, strict=True)
            gains.append(min(torch_seconds) / min(onednn_seconds))
    return median(gains)


@contextmanager
def prepacked_weights(model: nn.Module, num_tokens: int) -> Iterator[None]:
    """Hold the weights in oneDNN's own layout too, if running `num_tokens` tokens without a gradient is worth it."""
    layers = []
    if num_tokens >= PREPACK_MIN_TOKENS and not torch.is_autocast_enabled("cpu"):
        layers = [
            module for module in model.modules() if isinstance(module, CpuLinear) and _is_local_float32(module.weight)
        ]
    if sum(layer.weight.nbytes for layer in layers) > PREPACK_MAX_BYTES:
        layers = []
    try:
        for layer in layers:
            layer.prepacked = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), PREPACK_MIN_TOKENS)
        yield
    finally:
        for layer in layers:
            layer.prepacked = None


KERNEL = Kernel(
    "linear",
    "Multiplies float32 matrices by oneDNN instead of the BLAS in torch's wheels.",
    ("cpu",),
    "nn.Linear",
    install_linear,
    Benchmark(linear_shapes, gain_over_torch),
)
