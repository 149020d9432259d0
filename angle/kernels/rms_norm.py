"""RMS norms on a GPU: one kernel, where a model's own code calls eight and saves float32 copies of its input."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm

from angle.kernels.kernel import Kernel
from angle.kernels.mixin import NO_MODULE, add_mixin

#: Device types with such a kernel; elsewhere torch composes the same eight.
FUSED_ON = ("cuda",)


class _FusedRMSNorm:
    """A mixin for the models' RMS norms, which it computes in one kernel."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Return w x / sqrt(mean(x^2) + eps), (..., D) for x (..., D), as the model's own code does."""
        if len(args) == 1 and not kwargs and _has_kernel(args[0], self.weight):
            # Autocast would return float32, in some versions of torch; the models' own code keeps the type.
            with torch.autocast(args[0].device.type, enabled=False):
                return rms_norm(args[0], self.weight.shape, self.weight, _epsilon(self))
        model_output: Tensor = super().forward(*args, **kwargs)  # type: ignore[misc]
        return model_output


def _has_kernel(values: Tensor, weight: Tensor) -> bool:
    return values.device.type in FUSED_ON and values.dtype == weight.dtype and not torch.compiler.is_compiling()


def _epsilon(module: nn.Module) -> float | None:
    """Return what a norm adds to the mean square, None for a module that has no such number."""
    names = [name for name in ("variance_epsilon", "eps") if name in vars(module)]
    epsilon: Any = getattr(module, names[0]) if names else None
    return epsilon if isinstance(epsilon, float) else None


def _is_rms_norm(module: nn.Module) -> bool:
    """Return whether a module computes torch's RMS norm of its only input; found out by running it.

    Some norms multiply by 1 + w, subtract a mean, or take a gate.
    """
    epsilon = _epsilon(module)
    if epsilon is None or list(dict(module.named_parameters())) != ["weight"]:
        return False
    weight: Any = module.weight
    if weight.dim() != 1 or len(inspect.signature(type(module).forward).parameters) != 2:
        return False
    options: dict[str, Any] = {"dtype": torch.float32, "device": weight.device}
    weights = torch.linspace(0.5, 1.5, len(weight), **options)
    sizes = torch.tensor([[1.0], [epsilon**0.5]], **options)  # the second shows where epsilon is added
    values = sizes * torch.linspace(-2, 3, 2 * len(weight), **options).view(2, -1)
    try:
        with torch.no_grad():
            output = torch.func.functional_call(module, {"weight": weights}, (values,))
        return torch.allclose(output, rms_norm(values, weights.shape, weights, epsilon), rtol=1e-5, atol=1e-7)
    except Exception:  # whatever a norm of another kind expects
        return False


def install_rms_norm(model: nn.Module) -> str | None:
    """Let every RMS norm run as one kernel where there is one; return why not if the model has none."""
    norms = [module for module in model.modules() if _is_rms_norm(module)]
    for norm in norms:
        add_mixin(_FusedRMSNorm, norm)
    return None if norms else NO_MODULE


KERNEL = Kernel(
    "rms_norm",
    "Computes an RMS norm in one kernel instead of eight.",
    ("cuda",),
    "modules that compute torch's RMS norm when tested",
    install_rms_norm,
)
