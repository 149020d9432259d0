"""The contrastive losses, against loops that follow their description."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from angle.objective.contrastive import cross_entropy_over, in_batch_loss, not_negatives, text_to_candidates_loss


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def distinct(rows: int, roles: int) -> Tensor:
    return torch.arange(rows * roles).view(rows, roles)


def cosine(x: Tensor, y: Tensor) -> float:
    return float(F.cosine_similarity(x, y, dim=0))


def naive_in_batch(pairs: Tensor, positive: list[bool], ids: list[list[int]], tau: float, mask: bool) -> float:
    texts = [(row, side) for row in range(len(pairs)) for side in (0, 1)]
    known = {(ids[row][side], ids[row][1 - side]) for row, side in texts if positive[row]}
    total = 0.0
    for row, side in texts:
        if not positive[row]:
            continue
        own, partner = ids[row][side], (row, 1 - side)
        denominator = 0.0
        for other in texts:
            other_id = ids[other[0]][other[1]]
            unwanted = other == (row, side) or (mask and (other_id == own or (own, other_id) in known))
            if other == partner or not unwanted:
                denominator += math.exp(tau * cosine(pairs[row, side], pairs[other]))
        total += math.log(denominator) - tau * cosine(pairs[row, side], pairs[partner])
    return total / len(texts)


def naive_candidates(roles: Tensor, ids: list[list[int]], tau: float, mask: bool) -> float:
    candidates = [(row, role) for role in range(1, roles.shape[1]) for row in range(len(roles))]
    known = {(row[0], row[1]) for row in ids}
    total = 0.0
    for row in range(len(roles)):
        own, target = ids[row][0], (row, 1)
        denominator = 0.0
        for other in candidates:
            other_id = ids[other[0]][other[1]]
            if other == target or not (mask and (other_id == own or (own, other_id) in known)):
                denominator += math.exp(tau * cosine(roles[row, 0], roles[other]))
        total += math.log(denominator) - tau * cosine(roles[row, 0], roles[target])
    return total / len(roles)


def random_ids(rows: int, roles: int, seed: int) -> Tensor:
    """Few different numbers, so that texts repeat within and between rows and roles."""
    return torch.randint(0, 2 + rows, (rows, roles), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize("rows", [1, 2, 6])
@pytest.mark.parametrize("seed", range(4))
def test_in_batch_loss_is_the_loop(rows: int, mask: bool, seed: int) -> None:
    pairs, ids = normal(rows, 2, 8, seed=seed), random_ids(rows, 2, seed)
    positive = torch.rand(rows, generator=torch.Generator().manual_seed(seed)) > 0.4
    loss = in_batch_loss(pairs, positive, ids, 7.0, mask)
    expected = naive_in_batch(pairs, positive.tolist(), ids.tolist(), 7.0, mask)
    assert loss.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize("roles", [2, 3])
@pytest.mark.parametrize("rows", [1, 2, 6])
@pytest.mark.parametrize("seed", range(4))
def test_text_to_candidates_loss_is_the_loop(rows: int, roles: int, mask: bool, seed: int) -> None:
    embeddings, ids = normal(rows, roles, 8, seed=seed), random_ids(rows, roles, seed)
    loss = text_to_candidates_loss(embeddings, ids, 7.0, mask)
    assert loss.item() == pytest.approx(naive_candidates(embeddings, ids.tolist(), 7.0, mask), rel=1e-12)


def test_a_repeated_text_is_no_negative_when_masked_and_one_when_kept() -> None:
    # Rows 0 and 1 share the text: their positives are each other's, and leave only row 2's as a negative.
    ids = torch.tensor([[0, 1], [0, 2], [3, 4]])
    embeddings = normal(3, 2, 8)
    embeddings[1, 0] = embeddings[0, 0]
    masked, kept = (text_to_candidates_loss(embeddings, ids, 5.0, mask) for mask in (True, False))
    scores = 5 * F.normalize(embeddings[:, 0], dim=-1) @ F.normalize(embeddings[:, 1], dim=-1).T
    assert kept.item() == pytest.approx(F.cross_entropy(scores, torch.arange(3)).item())
    scores[0, 1] = scores[1, 0] = -torch.inf
    assert masked.item() == pytest.approx(F.cross_entropy(scores, torch.arange(3)).item())
    assert masked < kept


@pytest.mark.parametrize("ids", [[[0, 0], [0, 0]], [[5, 5], [1, 5]]])
def test_the_target_is_never_masked(ids: list[list[int]]) -> None:
    embeddings = normal(2, 2, 8).requires_grad_()
    loss = in_batch_loss(embeddings, torch.tensor([True, True]), torch.tensor(ids), 20.0, True)
    loss = loss + text_to_candidates_loss(embeddings, torch.tensor(ids), 20.0, True)
    loss.backward()
    assert loss.isfinite()
    assert embeddings.grad is not None
    assert embeddings.grad.isfinite().all()


def test_a_batch_of_one_text_repeated_has_nothing_to_learn() -> None:
    embeddings, ids = normal(3, 2, 8), torch.zeros(3, 2, dtype=torch.int64)
    assert in_batch_loss(embeddings, torch.ones(3, dtype=torch.bool), ids, 20.0, True).item() == 0.0
    assert text_to_candidates_loss(embeddings, ids, 20.0, True).item() == 0.0


def test_not_negatives_joins_a_query_to_all_its_positives() -> None:
    queries, candidates = torch.tensor([7, 8, 9]), torch.tensor([1, 2, 7, 3, 9])
    found = not_negatives(queries, candidates, torch.tensor([7, 7, 8]), torch.tensor([1, 3, 2]))
    assert found.int().tolist() == [[1, 0, 1, 1, 0], [0, 1, 0, 0, 0], [0, 0, 0, 0, 1]]


@pytest.mark.parametrize("positive", [[False, False, False], [True, False, False]])
def test_pairs_that_are_not_positive_count_in_the_mean_and_ask_for_nothing(positive: list[bool]) -> None:
    pairs = normal(3, 2, 8).requires_grad_()
    loss = in_batch_loss(pairs, torch.tensor(positive), distinct(3, 2), 20.0, False)
    loss.backward()
    assert loss.item() == pytest.approx(naive_in_batch(pairs.detach(), positive, distinct(3, 2).tolist(), 20.0, False))
    assert pairs.grad is not None
    assert pairs.grad[2].any() == positive[0]  # texts of other rows are negatives, if anyone asks


def test_the_negatives_of_other_rows_are_candidates() -> None:
    embeddings = normal(4, 3, 8)
    with_negatives = text_to_candidates_loss(embeddings, distinct(4, 3), 20.0, False)
    moved = torch.cat([embeddings[:, :2], embeddings[:, 2:].roll(1, 0)], dim=1)
    assert with_negatives.item() == pytest.approx(text_to_candidates_loss(moved, distinct(4, 3), 20.0, False).item())
    assert with_negatives > text_to_candidates_loss(embeddings[:, :2], distinct(4, 2), 20.0, False)


def test_zero_vectors_give_finite_loss_and_gradient() -> None:
    embeddings = torch.zeros(3, 3, 4, requires_grad=True)
    loss = text_to_candidates_loss(embeddings, distinct(3, 3), 20.0, True)
    loss = loss + in_batch_loss(embeddings[:, :2], torch.ones(3, dtype=torch.bool), distinct(3, 2), 20.0, True)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(6) + math.log(5))
    assert embeddings.grad is not None
    assert embeddings.grad.isfinite().all()


def test_cross_entropy_over_leaves_out_what_is_masked_except_the_target() -> None:
    queries, candidates = normal(2, 4), normal(3, 4, seed=1)
    masked = torch.tensor([[True, True, False], [False, False, False]])
    losses = cross_entropy_over(queries, candidates, torch.tensor([0, 2]), masked, 3.0)
    scores = 3 * F.normalize(queries, dim=-1) @ F.normalize(candidates, dim=-1).T
    assert losses[0].item() == pytest.approx((torch.logsumexp(scores[0, [0, 2]], 0) - scores[0, 0]).item())
    assert losses[1].item() == pytest.approx((torch.logsumexp(scores[1], 0) - scores[1, 2]).item())
