"""Vectors of length 1, against torch's own."""

import pytest
import torch
import torch.nn.functional as F

from angle.objective.normalize import l2_normalize


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.0, 1e-6, 1.0, 1e6])
def test_values_and_gradients_are_those_of_normalize(dtype: torch.dtype, scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    vectors, upstream = (torch.randn(5, 3, 8, generator=generator, dtype=dtype) for _ in range(2))
    vectors = (scale * vectors).requires_grad_()
    mine, expected = l2_normalize(vectors), F.normalize(vectors, dim=-1)
    torch.testing.assert_close(mine, expected)
    (gradient,) = torch.autograd.grad(mine, vectors, upstream)
    (wanted,) = torch.autograd.grad(expected, vectors, upstream)
    assert gradient.isfinite().all()
    torch.testing.assert_close(gradient * (scale or 1e-12), wanted * (scale or 1e-12))


def test_gradient_agrees_with_finite_differences() -> None:
    vectors = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(l2_normalize, [vectors])


def test_a_second_derivative_is_refused() -> None:
    vectors = torch.ones(2, 3, requires_grad=True)
    with pytest.raises(RuntimeError, match="differentiated once only"):
        torch.autograd.grad(l2_normalize(vectors)[:, 0].sum(), vectors, create_graph=True)
