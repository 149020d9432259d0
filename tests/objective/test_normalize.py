"""L2 normalisation."""

import pytest
import torch

from angle.objective.normalize import l2_normalize


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_lengths_are_1_whatever_they_were(dtype: torch.dtype, scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = scale * torch.randn(5, 3, 8, generator=generator, dtype=dtype)
    normalized = l2_normalize(vectors)
    torch.testing.assert_close(normalized.norm(dim=-1), torch.ones(5, 3, dtype=dtype))
    torch.testing.assert_close(normalized * vectors.norm(dim=-1, keepdim=True), vectors)


def test_a_zero_vector_stays_zero_and_has_a_finite_gradient() -> None:
    vectors = torch.zeros(2, 3, requires_grad=True)
    normalized = l2_normalize(vectors)
    (gradient,) = torch.autograd.grad(normalized.sum(), vectors)
    assert not normalized.any()
    assert gradient.isfinite().all()


def test_gradient_agrees_with_finite_differences() -> None:
    vectors = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(l2_normalize, [vectors])
