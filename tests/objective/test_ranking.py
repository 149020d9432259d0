"""The ranking loss and its two similarities, against their formulas written out."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from angle.objective.normalize import l2_normalize
from angle.objective.ranking import angle_scores, cosent_loss, cosine_scores


def cosine(x: Tensor, y: Tensor) -> Tensor:
    """Return the cosine similarities of vectors of any length."""
    return cosine_scores(l2_normalize(x), l2_normalize(y))


def angle(x: Tensor, y: Tensor) -> Tensor:
    """Return the angle similarities of vectors of any length."""
    return angle_scores(l2_normalize(x), l2_normalize(y))


def naive_ranking_loss(scores: Tensor, labels: Tensor) -> Tensor:
    total = 1 + 0 * scores.sum()
    for p in range(len(scores)):
        for q in range(len(scores)):
            if labels[p] < labels[q]:
                total = total + torch.exp(scores[p] - scores[q])
    return torch.log(total)


def naive_angle_score(x: Tensor, y: Tensor) -> float:
    half = len(x) // 2
    z = [complex(x[k], x[k + half]) for k in range(half)]
    w = [complex(y[k], y[k + half]) for k in range(half)]
    q = sum(a * b.conjugate() for a, b in zip(z, w, strict=True)) / float(x.norm() * y.norm())
    return abs(q.real + q.imag)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


LABELS = {
    "binary": [0, 1, 1, 0, 1, 0, 0],
    "graded with ties": [2.5, 0.5, 2.5, 5, 0.5, 3, 3],
    "all different": [3, 1, 7, 2, 5, 4, 6],
    "negative": [-1, 0, -1, 1, 0, 1, 1],
    "one higher": [0, 0, 0, 0, 0, 0, 9],
    "all equal": [1, 1, 1, 1, 1, 1, 1],
}


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS.keys())
@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_ranking_loss_matches_naive_implementation(labels: list[float], scale: float) -> None:
    mine, naive = (scale * normal(7)).requires_grad_(), (scale * normal(7)).requires_grad_()
    cosent_loss(mine, torch.tensor(labels)).backward()
    naive_ranking_loss(naive, torch.tensor(labels)).backward()
    torch.testing.assert_close(cosent_loss(mine, torch.tensor(labels)), naive_ranking_loss(naive, torch.tensor(labels)))
    torch.testing.assert_close(mine.grad, naive.grad if naive.grad is not None else torch.zeros(7).double())


@pytest.mark.parametrize("seed", range(5))
def test_ranking_loss_on_tied_scores_and_labels(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(-2, 3, (12,), generator=generator).double()
    labels = torch.randint(0, 4, (12,), generator=generator)
    torch.testing.assert_close(cosent_loss(scores, labels), naive_ranking_loss(scores, labels))


@pytest.mark.parametrize("labels", [[1.0], [3.0, 3.0, 3.0]])
def test_nothing_to_rank_is_exactly_zero_with_zero_gradient(labels: list[float]) -> None:
    scores = normal(len(labels)).requires_grad_()
    loss = cosent_loss(scores, torch.tensor(labels))
    loss.backward()
    assert loss.item() == 0.0
    assert scores.grad is not None
    assert not scores.grad.any()


def test_ranking_loss_does_not_depend_on_the_order_of_rows() -> None:
    scores, labels = normal(9), torch.tensor([0, 2, 1, 1, 2, 0, 3, 3, 1])
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(cosent_loss(scores, labels), cosent_loss(scores[order], labels[order]))


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS.keys())
def test_gradient_of_ranking_loss_agrees_with_finite_differences(labels: list[float]) -> None:
    scores = normal(7).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: cosent_loss(s, torch.tensor(labels)), [scores])


def test_extreme_scores_stay_finite() -> None:
    scores = torch.tensor([2000.0, -2000.0, 0.0], requires_grad=True)
    loss = cosent_loss(scores, torch.tensor([0.0, 1.0, 0.5]))
    loss.backward()
    assert loss.item() == pytest.approx(4000.0)
    assert scores.grad is not None
    assert scores.grad.isfinite().all()


def test_memory_of_ranking_65_536_rows() -> None:
    scores = (20 * normal(65_536).float()).requires_grad_()  # the table would take 17 GB
    labels = torch.arange(65_536) % 6
    loss = cosent_loss(scores, labels)
    loss.backward()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()
    by_label = [scores.detach().double()[labels == number] for number in range(6)]
    sums = torch.stack([
        torch.logsumexp(by_label[low], 0) + torch.logsumexp(-by_label[high], 0)
        for low in range(6)
        for high in range(low + 1, 6)
    ])  # fmt: skip
    assert loss.item() == pytest.approx(torch.logsumexp(sums, 0).item(), rel=1e-5)


def test_no_device_synchronization() -> None:
    # Tensors without values: whatever would have to wait for them on a GPU fails.
    scores = torch.empty(5, device="meta", requires_grad=True)
    cosent_loss(scores, torch.empty(5, device="meta")).backward()
    assert scores.grad is not None


def test_angle_scores_match_the_complex_quotient() -> None:
    x, y = normal(20, 12), normal(20, 12, seed=1)
    expected = [naive_angle_score(a, b) for a, b in zip(x, y, strict=True)]
    torch.testing.assert_close(angle(x, y), torch.tensor(expected, dtype=torch.float64))


def test_cosine_scores_match_cosine_similarity() -> None:
    x, y = normal(20, 12), normal(20, 12, seed=1)
    expected = [float(a @ b) / math.sqrt(float(a @ a) * float(b @ b)) for a, b in zip(x, y, strict=True)]
    torch.testing.assert_close(cosine(x, y), torch.tensor(expected, dtype=torch.float64))


def test_angle_score_of_equal_vectors_is_one() -> None:
    x = normal(20, 12)
    torch.testing.assert_close(angle(x, x), torch.ones(20, dtype=torch.float64))


def test_angle_scores_lie_between_zero_and_root_two() -> None:
    scores = angle(normal(5000, 2), normal(5000, 2, seed=1))
    assert scores.min() >= 0
    assert scores.max() <= math.sqrt(2) + 1e-12
    assert scores.max() > 1.41


@pytest.mark.parametrize("degrees", [0, 30, 45, 90, 135, -45])
def test_angle_score_of_a_rotation_is_cosine_plus_sine(degrees: float) -> None:
    turn = math.radians(degrees)
    re, im = normal(5, 12).chunk(2, dim=-1)
    rotated = torch.cat([re * math.cos(turn) - im * math.sin(turn), re * math.sin(turn) + im * math.cos(turn)], -1)
    expected = abs(math.cos(turn) + math.sin(turn))
    torch.testing.assert_close(angle(rotated, torch.cat([re, im], -1)), torch.full((5,), expected, dtype=torch.float64))
    if degrees == 45:
        assert expected == pytest.approx(math.sqrt(2))


@pytest.mark.parametrize("scale", [1e-6, 0.5, 1e6])
def test_scaling_either_side_changes_no_score(scale: float) -> None:
    x, y = normal(20, 12), normal(20, 12, seed=1)
    for scores in (angle, cosine):
        torch.testing.assert_close(scores(scale * x, y), scores(x, y))
        torch.testing.assert_close(scores(x, scale * y), scores(x, y))


def test_angle_score_ignores_the_sign_but_not_the_order() -> None:
    x, y = normal(20, 12), normal(20, 12, seed=1)
    torch.testing.assert_close(angle(-x, y), angle(x, y))
    assert (angle(x, y) - angle(y, x)).abs().max() > 0.1


@pytest.mark.parametrize("scores", [angle, cosine])
def test_a_zero_vector_scores_zero_with_finite_gradient(scores: Callable[[Tensor, Tensor], Tensor]) -> None:
    x, y = torch.zeros(2, 4, requires_grad=True), torch.ones(2, 4, requires_grad=True)
    loss = cosent_loss(20 * scores(x, y), torch.tensor([0.0, 1.0]))
    loss.backward()
    assert not scores(x, y).any()
    assert loss.item() == pytest.approx(math.log(2))
    assert x.grad is not None
    assert y.grad is not None
    assert x.grad.isfinite().all()
    assert y.grad.isfinite().all()
