"""The contrastive losses, against naive implementations."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from angle.objective import contrastive
from angle.objective.contrastive import (
    SINGLE_PROCESS,
    FalseNegativeMask,
    QueryShards,
    chunked_info_nce,
    info_nce,
    nt_xent,
)
from angle.objective.normalize import l2_normalize
from angle.training.memory import Allocations

NONE = torch.empty(0, 3, dtype=torch.int64)


def in_batch(
    pairs: Tensor, positive: Tensor, ids: Tensor, scale: float, known_positives: Tensor = NONE, **options: Any
) -> Tensor:
    """Return the loss of format A of embeddings of any length."""
    return nt_xent(l2_normalize(pairs), positive, ids, known_positives.to(ids.device), scale, **options)


def to_candidates(roles: Tensor, ids: Tensor, scale: float, known_positives: Tensor = NONE, **options: Any) -> Tensor:
    """Return the loss of formats B and C of embeddings of any length."""
    unit = l2_normalize(roles)
    shared = pairs_of(ids), negatives_of(ids), known_positives.to(ids.device), scale
    return info_nce(pairs_of(unit), negatives_of(unit), *shared, **options)


def pairs_of(roles: Tensor) -> Tensor:
    return roles[:, :2]


def negatives_of(roles: Tensor) -> Tensor:
    return roles[:, 2:].flatten(0, 1)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def distinct(rows: int, roles: int) -> Tensor:
    return torch.arange(rows * roles).view(rows, roles)


def naive_in_batch(
    pairs: Tensor,
    positive: list[bool],
    ids: list[list[int]],
    scale: float,
    known_positives: Sequence[Sequence[int]] = (),
) -> Tensor:
    texts = [(row, side) for row in range(len(pairs)) for side in (0, 1)]
    known = {(ids[row][side], ids[row][1 - side]) for row, side in texts if positive[row]}
    known |= {
        pair for row, first, second in known_positives if positive[row] for pair in ((first, second), (second, first))
    }
    total = 0 * pairs.sum()
    for row, side in texts:
        if not positive[row]:
            continue
        own_id, partner = ids[row][side], (row, 1 - side)
        denominator = pairs.new_zeros(())
        for other in texts:
            other_id = ids[other[0]][other[1]]
            is_masked = other == (row, side) or other_id == own_id or (own_id, other_id) in known
            if other == partner or not is_masked:
                denominator = denominator + (scale * F.cosine_similarity(pairs[row, side], pairs[other], dim=0)).exp()
        total = total + denominator.log() - scale * F.cosine_similarity(pairs[row, side], pairs[partner], dim=0)
    return total / len(texts)


def naive_candidates(
    roles: Tensor, ids: list[list[int]], scale: float, known_positives: Sequence[Sequence[int]] = ()
) -> Tensor:
    candidates = [(row, role) for role in range(1, roles.shape[1]) for row in range(len(roles))]
    pairs = [row[:2] for row in ids] + [other[1:] for other in known_positives]
    known = {pair for first, second in pairs for pair in ((first, second), (second, first))}
    total = 0 * roles.sum()
    for row in range(len(roles)):
        own_id, target = ids[row][0], (row, 1)
        denominator = roles.new_zeros(())
        for other in candidates:
            other_id = ids[other[0]][other[1]]
            if other == target or not (other_id == own_id or (own_id, other_id) in known):
                denominator = denominator + (scale * F.cosine_similarity(roles[row, 0], roles[other], dim=0)).exp()
        total = total + denominator.log() - scale * F.cosine_similarity(roles[row, 0], roles[target], dim=0)
    return total / len(roles)


def random_ids(rows: int, roles: int, seed: int) -> Tensor:
    """Return ids with few different values, so that texts repeat within and between rows and roles."""
    return torch.randint(0, 2 + rows, (rows, roles), generator=torch.Generator().manual_seed(seed))


def random_known_positives(ids: Tensor, count: int, seed: int) -> Tensor:
    """Return random pairs of the batch's texts, as if rows could have had them too."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(0, len(ids), (count, 1), generator=generator)
    texts = torch.randint(0, ids.numel(), (count, 2), generator=generator)
    return torch.cat([rows, ids.flatten()[texts]], dim=1)


class Products(TorchDispatchMode):
    """Counts matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.count = self.queries = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.count += name in ("mm", "addmm", "addmm_", "bmm", "baddbmm")
        if func is torch.ops.aten.mm.default:  # of queries and candidates
            self.queries += len(args[0])
        return func(*args, **(kwargs or {}))


def gradient(loss: Tensor, embeddings: Tensor) -> Tensor:
    return torch.autograd.grad(loss, embeddings)[0]


@pytest.fixture(params=[1, 5, None], ids=["chunks of 1", "chunks of 5", "one chunk"])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets how many queries are taken at once, of the 6 or 12 that meet 12 candidates."""
    if request.param is not None:
        monkeypatch.setattr(contrastive, "MAX_LOGITS", 12 * request.param)


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("num_pairs", [0, 3])
@pytest.mark.parametrize("rows", [1, 2, 6])
@pytest.mark.parametrize("seed", range(4))
def test_nt_xent_matches_naive_implementation(rows: int, num_pairs: int, seed: int) -> None:
    pairs, ids = normal(rows, 2, 8, seed=seed).requires_grad_(), random_ids(rows, 2, seed)
    positive = torch.rand(rows, generator=torch.Generator().manual_seed(seed)) > 0.4
    known_positives = random_known_positives(ids, num_pairs, seed)
    loss = in_batch(pairs, positive, ids, 7.0, known_positives)
    expected = naive_in_batch(pairs, positive.tolist(), ids.tolist(), 7.0, known_positives.tolist())
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(gradient(loss, pairs), gradient(expected, pairs), rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("num_pairs", [0, 3])
@pytest.mark.parametrize("roles", [2, 3, 5])
@pytest.mark.parametrize("rows", [1, 2, 6])
@pytest.mark.parametrize("seed", range(4))
def test_info_nce_matches_naive_implementation(rows: int, roles: int, num_pairs: int, seed: int) -> None:
    embeddings, ids = normal(rows, roles, 8, seed=seed).requires_grad_(), random_ids(rows, roles, seed)
    known_positives = random_known_positives(ids, num_pairs, seed)
    loss = to_candidates(embeddings, ids, 7.0, known_positives)
    expected = naive_candidates(embeddings, ids.tolist(), 7.0, known_positives.tolist())
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(gradient(loss, embeddings), gradient(expected, embeddings), rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("chunk")
def test_gradients_agree_with_finite_differences() -> None:
    pairs, roles = normal(6, 2, 4).requires_grad_(), normal(6, 3, 4).requires_grad_()
    positive = torch.tensor([True, False, True, True, False, True])
    assert torch.autograd.gradcheck(lambda x: in_batch(x, positive, random_ids(6, 2, 0), 3.0), [pairs])
    assert torch.autograd.gradcheck(lambda x: to_candidates(x, random_ids(6, 3, 0), 3.0), [roles])


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("number", [2, 3, 16])
@pytest.mark.parametrize("name", ["A", "B"])
def test_processes_split_the_queries(name: str, number: int) -> None:
    """The losses of all shards add up to that of one process, and each computes the logits of its own queries only."""
    ids, positive = random_ids(6, 3, 0), torch.tensor([True, False, True, True, False, True])

    def loss_of(roles: Tensor, query_shards: QueryShards) -> Tensor:
        if name == "A":
            return in_batch(roles[:, :2], positive, ids[:, :2], 7.0, query_shards=query_shards)
        return to_candidates(roles, ids, 7.0, query_shards=query_shards)

    roles = normal(6, 3, 8).requires_grad_()
    with Products() as unsharded_products:
        unsharded = loss_of(roles, SINGLE_PROCESS)
    parts, counts = [], []
    for rank in range(number):
        with Products() as shard_products:
            parts.append(loss_of(roles, QueryShards(rank, number)))
        counts.append(shard_products.queries)
    torch.testing.assert_close(torch.stack(parts).sum(), unsharded)
    torch.testing.assert_close(sum(gradient(part, roles) for part in parts), gradient(unsharded, roles))
    assert sum(counts) == unsharded_products.queries
    assert max(counts) - min(counts) <= 1


def test_backward_scales_and_can_be_repeated() -> None:
    roles = normal(4, 3, 8).requires_grad_()
    loss = to_candidates(roles, distinct(4, 3), 20.0)
    first_grad, second_grad = (torch.autograd.grad(loss, roles, retain_graph=True)[0] for _ in range(2))
    assert first_grad.equal(second_grad)
    torch.testing.assert_close(gradient(-3 * loss, roles), -3 * first_grad)


def test_a_second_derivative_is_refused() -> None:
    queries, candidates = (F.normalize(normal(4, 8, seed=seed), dim=-1).requires_grad_() for seed in (0, 1))
    texts = torch.arange(4)
    mask = FalseNegativeMask(texts, texts, texts, texts, num_texts=4)
    loss = chunked_info_nce(queries, candidates, texts, torch.ones(4, dtype=torch.float64), 20.0, mask)
    with pytest.raises(RuntimeError, match="differentiated once only"):
        torch.autograd.grad(loss, queries, create_graph=True)


def test_number_of_matrix_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contrastive, "MAX_LOGITS", 2 * 12)  # 3 chunks of 2 queries
    roles = normal(6, 3, 8).requires_grad_()
    with Products() as trained:
        to_candidates(roles, distinct(6, 3), 20.0).backward()
    with Products() as validated, torch.no_grad():
        to_candidates(roles, distinct(6, 3), 20.0)
    assert (trained.count, validated.count) == (9, 3)


@pytest.mark.parametrize(("name", "rows"), [("A", 4096), ("B", 8192)])
def test_memory_of_a_large_batch(name: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # The smallest table of all queries and candidates, one of booleans, takes 64 or 128 MiB. Half of the rows share
    # a text, which has thousands of positives.
    monkeypatch.setattr(contrastive, "MAX_LOGITS", 2**19)
    ids = distinct(rows, 2 + (name == "B"))
    ids[::2, 0] = 0
    embeddings = torch.randn(*ids.shape, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with Allocations() as allocations:
        if name == "A":
            in_batch(embeddings, torch.arange(rows) % 4 == 0, ids, 20.0).backward()
        else:
            to_candidates(embeddings, ids, 20.0).backward()
    assert allocations.peak < 32 * 2**20


def test_no_device_synchronization() -> None:
    # Tensors without values: whatever would have to wait for them on a GPU fails.
    roles, ids = (tensor.to("meta") for tensor in (normal(4, 3, 8), distinct(4, 3)))
    roles.requires_grad_()
    loss = to_candidates(roles, ids, 20.0)
    positive = torch.ones(4, dtype=torch.bool, device="meta")
    loss = loss + in_batch(roles[:, :2], positive, ids[:, :2], 20.0)
    assert gradient(loss, roles).shape == roles.shape


def test_a_repeated_text_is_no_negative_when_masked_and_one_when_kept() -> None:
    # Rows 0 and 1 share the text: their positives are each other's, and leave only row 2's as a negative.
    ids = torch.tensor([[0, 1], [0, 2], [3, 4]])
    embeddings = normal(3, 2, 8)
    embeddings[1, 0] = embeddings[0, 0]
    masked, unmasked = (to_candidates(embeddings, texts, 5.0) for texts in (ids, distinct(3, 2)))
    scores = 5 * F.normalize(embeddings[:, 0], dim=-1) @ F.normalize(embeddings[:, 1], dim=-1).T
    assert unmasked.item() == pytest.approx(F.cross_entropy(scores, torch.arange(3)).item())
    scores[0, 1] = scores[1, 0] = -torch.inf
    assert masked.item() == pytest.approx(F.cross_entropy(scores, torch.arange(3)).item())
    assert masked < unmasked


@pytest.mark.parametrize("ids", [[[0, 0], [0, 0]], [[5, 5], [1, 5]]])
def test_the_target_is_never_masked(ids: list[list[int]]) -> None:
    embeddings = normal(2, 2, 8).requires_grad_()
    loss = in_batch(embeddings, torch.tensor([True, True]), torch.tensor(ids), 20.0)
    loss = loss + to_candidates(embeddings, torch.tensor(ids), 20.0)
    loss.backward()
    assert loss.isfinite()
    assert embeddings.grad is not None
    assert embeddings.grad.isfinite().all()


def test_a_batch_of_one_text_repeated_has_nothing_to_learn() -> None:
    embeddings, ids = normal(3, 2, 8), torch.zeros(3, 2, dtype=torch.int64)
    assert in_batch(embeddings, torch.ones(3, dtype=torch.bool), ids, 20.0).item() == 0.0
    assert to_candidates(embeddings, ids, 20.0).item() == 0.0


def test_false_negatives_are_the_query_itself_and_all_its_positives() -> None:
    queries, candidates = torch.tensor([7, 8, 9, 7]), torch.tensor([1, 2, 7, 3, 9])
    mask = FalseNegativeMask(queries, candidates, torch.tensor([7, 7, 8]), torch.tensor([1, 3, 2]), num_texts=10)
    expected = [[1, 0, 1, 1, 0], [0, 1, 0, 0, 0], [0, 0, 0, 0, 1], [1, 0, 1, 1, 0]]
    assert mask.for_queries(slice(0, 4)).int().tolist() == expected
    assert mask.for_queries(slice(1, 3)).int().tolist() == expected[1:3]


@pytest.mark.parametrize("positive", [[False, False, False], [True, False, False]])
def test_pairs_that_are_not_positive_count_in_the_mean_and_have_zero_weight(positive: list[bool]) -> None:
    pairs = normal(3, 2, 8).requires_grad_()
    loss = in_batch(pairs, torch.tensor(positive), distinct(3, 2), 20.0)
    loss.backward()
    expected = naive_in_batch(pairs.detach(), positive, distinct(3, 2).tolist(), 20.0)
    assert loss.item() == pytest.approx(expected.item())
    assert pairs.grad is not None
    assert pairs.grad[2].any() == positive[0]  # texts of other rows are negatives of a positive pair


def test_the_negatives_of_other_rows_are_candidates() -> None:
    embeddings = normal(4, 3, 8)
    with_negatives = to_candidates(embeddings, distinct(4, 3), 20.0)
    moved = torch.cat([embeddings[:, :2], embeddings[:, 2:].roll(1, 0)], dim=1)
    assert with_negatives.item() == pytest.approx(to_candidates(moved, distinct(4, 3), 20.0).item())
    assert with_negatives > to_candidates(embeddings[:, :2], distinct(4, 2), 20.0)


def test_zero_vectors_give_finite_loss_and_gradient() -> None:
    embeddings = torch.zeros(3, 3, 4, requires_grad=True)
    loss = to_candidates(embeddings, distinct(3, 3), 20.0)
    loss = loss + in_batch(embeddings[:, :2], torch.ones(3, dtype=torch.bool), distinct(3, 2), 20.0)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(6) + math.log(5))
    assert embeddings.grad is not None
    assert embeddings.grad.isfinite().all()


def test_nan_is_propagated() -> None:
    roles = normal(3, 3, 4)
    roles[1, 2, 0] = torch.nan
    assert to_candidates(roles, distinct(3, 3), 20.0).isnan()


def test_chunked_info_nce_leaves_out_what_is_masked_except_the_target() -> None:
    queries, candidates = F.normalize(normal(2, 4), dim=-1), F.normalize(normal(3, 4, seed=1), dim=-1)
    texts = torch.tensor([0, 3]), torch.tensor([0, 1, 2])
    mask = FalseNegativeMask(*texts, anchor_ids=torch.tensor([0]), positive_ids=torch.tensor([1]), num_texts=4)
    scores = 3 * queries @ candidates.T
    first = torch.logsumexp(scores[0, [0, 2]], 0) - scores[0, 0]
    second = torch.logsumexp(scores[1], 0) - scores[1, 2]
    weights = torch.tensor([0.25, 2.0], dtype=torch.float64)
    loss = chunked_info_nce(queries, candidates, torch.tensor([0, 2]), weights, 3.0, mask)
    assert loss.item() == pytest.approx((0.25 * first + 2 * second).item())
