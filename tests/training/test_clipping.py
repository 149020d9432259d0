"""Gradients are clipped to a norm as torch does it."""

from __future__ import annotations

import math

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from angle.training.clipping import clip_gradients


@pytest.mark.parametrize("max_norm", [0.5, 1e6, math.inf])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_norm_and_gradients_are_those_of_float64(max_norm: float, size: float) -> None:
    generator = torch.Generator().manual_seed(1)
    shapes = [(300, 500), (7,), (64, 33)]
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in shapes]
    for parameter in parameters:
        parameter.grad = size * torch.randn(parameter.shape, generator=generator)
    parameters[-1].grad = size * torch.randn(33, 64, generator=generator).T  # rows of it are not contiguous
    before = [parameter.grad.double() for parameter in parameters if parameter.grad is not None]
    expected = math.sqrt(sum(float(gradient.square().sum()) for gradient in before))

    norm = clip_gradients([nn.Parameter(torch.zeros(3)), *parameters], max_norm, Accelerator(cpu=True))

    assert float(norm) == pytest.approx(expected, rel=1e-6)
    scale = min(1.0, max_norm / (expected + 1e-6))
    for parameter, gradient in zip(parameters, before, strict=True):
        torch.testing.assert_close(parameter.grad, (gradient * scale).float(), rtol=2e-6, atol=0.0)


def test_a_norm_that_is_not_finite_is_reported() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([1.0, math.nan])
    assert math.isnan(clip_gradients([parameter], 1.0, Accelerator(cpu=True)))
    assert parameter.grad.isnan().all()
