"""Clip gradients to a norm."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_

if TYPE_CHECKING:
    from accelerate import Accelerator


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float, accelerator: Accelerator) -> Tensor:
    """Scale gradients so that their norm is at most `max_norm`; return the norm (scalar) that they had.

    On CPUs, torch's norm of a vector takes more than twice as long as the product of the vector with itself.
    """
    if accelerator.device.type != "cpu" or accelerator.is_fsdp2:
        norm: Tensor = accelerator.clip_grad_norm_(parameters, max_norm)
        return norm
    parameters = list(parameters)
    gradients = [parameter.grad.flatten() for parameter in parameters if parameter.grad is not None]
    norm = torch.stack([gradient.dot(gradient) for gradient in gradients]).sum().sqrt()
    clip_grads_with_norm_(parameters, max_norm, norm)
    return norm
