"""RMS norms on a GPU: one kernel, where a model's own code calls eight and saves float32 copies of its input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm

from angle.modeling.mixing import mix_in

#: Device types with such a kernel; elsewhere torch composes the same eight.
FUSED_ON = ("cuda",)


class _Fused:
    """What the fast variants of the models' norms share; comes before one of their classes."""

    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        """Return w x / sqrt(mean(x^2) + eps), (..., D) for (..., D), as the model's own code does."""
        weight: Tensor = self.weight
        fits = hidden_states.device.type in FUSED_ON and hidden_states.dtype == weight.dtype
        if not fits or torch.compiler.is_compiling():
            own: Tensor = super().forward(hidden_states)  # type: ignore[misc]
            return own
        return rms_norm(hidden_states, weight.shape, weight, _epsilon(self))


def _epsilon(module: nn.Module) -> float | None:
    """Return what a norm adds to the mean square, None for a module that has no such number."""
    found: Any = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    return found if isinstance(found, float) else None


def _is_rms_norm(module: nn.Module) -> bool:
    """Return whether a module computes torch's RMS norm; some multiply by 1 + w, or subtract a mean."""
    weights, epsilon = dict(module.named_parameters()), _epsilon(module)
    if epsilon is None or list(weights) != ["weight"] or weights["weight"].dim() != 1:
        return False
    weight = weights["weight"].detach().float()
    values = torch.linspace(-2, 3, 2 * len(weight), device=weight.device).view(2, -1)
    with torch.no_grad():
        found = module(values)
    return torch.allclose(found.float(), rms_norm(values, weight.shape, weight, epsilon), rtol=1e-5, atol=1e-6)


def speed_up_norms(model: nn.Module) -> None:
    """Let every RMS norm run as one kernel where there is one."""
    for module in model.modules():
        if _is_rms_norm(module):
            mix_in(_Fused, module)
