"""The AnglE loss: golden values of the reference release, weights, formats, and number types."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPO
from torch import Tensor

from angle.config import LossConfig
from angle.errors import ConfigError
from angle.objective.combined import CombinedLoss
from angle.objective.contrastive import info_nce, nt_xent
from angle.objective.normalize import l2_normalize
from angle.objective.ranking import angle_scores, cosent_loss, cosine_scores
from angle.structures import FORMATS, BatchStructure

#: Random embeddings and labels with losses and gradients (float64) that release 0.5.4 of the reference gives; for the
#: contrastive term on labels other than 0 and 1 the values wanted, which leave out the reference's accidental targets.
GOLDENS = np.load(REPO / "tests" / "fixtures" / "losses.npz")
#: The same of release 0.5.6, whose loss for triples has a weight more, and is that of 0.6.1; gradients in float32.
LATER_GOLDENS = np.load(REPO / "tests" / "fixtures" / "losses_0_6.npz")


def embeddings_of(record: dict[str, Any]) -> np.ndarray:
    name = f"embeddings/{record['case']}"
    return (LATER_GOLDENS if name in LATER_GOLDENS else GOLDENS)[name]


def records(goldens: Mapping[str, np.ndarray]) -> Iterator[Any]:
    start = 0
    for text, loss in zip(goldens["records"], goldens["losses"], strict=True):
        record = json.loads(str(text))
        shape = embeddings_of(record).shape
        gradient = goldens["gradients"][start : start + np.prod(shape)].reshape(shape)
        start += np.prod(shape)
        settings = ",".join(f"{key}={value}" for key, value in record["settings"].items())
        yield pytest.param(record, float(loss), gradient, id=f"{record['function']}-{record['case']}-{settings}")


def evaluate(record: dict[str, Any], embeddings: Tensor) -> Tensor:
    data_format, settings, dimensions = FORMATS[record["format"]], dict(record["settings"]), embeddings.shape[1]
    roles = embeddings.view(-1, len(data_format.roles), dimensions)
    index = torch.arange(len(embeddings)).view(roles.shape[:2])
    # Equal embeddings are equal texts: the reference keeps them as negatives, as if they were different ones.
    ids = torch.from_numpy(np.unique(embeddings.detach().numpy(), axis=0, return_inverse=True)[1]).view(index.shape)
    labels = torch.from_numpy(GOLDENS[f"labels/{record['case']}"]) if data_format.labelled else None
    if record["function"] == "objective":
        if settings.pop("angle_pooling_strategy", "sum") == "mean":
            settings["angle_tau"] /= dimensions
        objective = CombinedLoss(LossConfig(**settings, reverse_w=0.0), data_format, dimensions, duplicates="keep")
        return objective(embeddings, BatchStructure.of_columns(data_format, index, ids, labels)).total
    roles, no_known_positives = l2_normalize(roles), torch.empty(0, 3, dtype=torch.int64)
    if record["function"] == "contrastive":
        used = slice(2, None if settings["neg"] else 2)
        negatives, negative_ids = roles[:, used].flatten(0, 1), index[:, used].flatten()
        return info_nce(roles[:, :2], negatives, index[:, :2], negative_ids, no_known_positives, settings["tau"])
    assert labels is not None
    if record["function"] == "in_batch":
        return nt_xent(roles, labels.trunc() > 0, index, no_known_positives, settings["tau"])
    if record["function"] == "cosine":
        return cosent_loss(settings["tau"] * cosine_scores(roles[:, 0], roles[:, 1]), labels)
    assert record["function"] == "angle"
    tau = settings["tau"] / (dimensions if settings["pooling_strategy"] == "mean" else 1)
    return cosent_loss(tau * angle_scores(roles[:, 0], roles[:, 1]), labels)


@pytest.mark.parametrize(("record", "loss", "gradient"), [*records(GOLDENS), *records(LATER_GOLDENS)])
def test_reference_release(record: dict[str, Any], loss: float, gradient: np.ndarray) -> None:
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        embeddings = torch.from_numpy(embeddings_of(record)).to(dtype).requires_grad_()
        loss_value = evaluate(record, embeddings)
        loss_value.backward()
        assert loss_value.item() == pytest.approx(loss, rel=tolerance, abs=tolerance)
        assert embeddings.grad is not None
        largest = max(np.abs(gradient).max(), 1e-3)
        atol = max(10 * tolerance, 1e-7 if gradient.dtype == np.float32 else 0)
        np.testing.assert_allclose(embeddings.grad.numpy() / largest, gradient / largest, atol=atol, rtol=0)


def test_the_golden_records_of_the_later_releases_are_all_there() -> None:
    assert len(LATER_GOLDENS["records"]) == 168
    assert sum(json.loads(str(text))["settings"]["cln_w"] > 0 for text in LATER_GOLDENS["records"]) == 84


def test_weights_of_the_later_releases() -> None:
    """Only triples have the two in-batch losses; all else keeps the meaning of ibn_w."""
    config = LossConfig(ibn_w=3.0, cln_w=1.0)
    assert [(spec.name, weight) for spec, weight in config.for_format("B").active_terms("B")] == [
        ("ibn", 0.5), ("angle", 1.0), ("positives", 1.5),
    ]  # fmt: skip
    assert config.for_format("B").for_format("B") == config.for_format("B")
    for name in ("A", "C"):
        assert config.for_format(name) == LossConfig(ibn_w=3.0).for_format(name)
    assert LossConfig(0.0, 0.0, 0.0, cln_w=1.0).for_format("B").active_terms("B")[0][1] == 0.5
    with pytest.raises(ConfigError) as error:
        LossConfig(positives_w=1.0, cln_w=1.0)
    assert str(error.value) == (
        "loss.cln_w=1 and loss.positives_w=1 both weigh the in-batch loss of positives: leave one of them out."
    )


def test_positives_alone_leave_out_negatives_and_known_positives() -> None:
    embeddings, structure = make(4, "B")
    known = torch.tensor([[0, 0, 4], [1, 3, 11]])  # row, and two texts; the last is in the batch as a negative only
    structure = replace(structure, known_positives=known)
    term = CombinedLoss(LossConfig(0.0, 0.0, 0.0, positives_w=1.0), FORMATS["B"], 8)(embeddings, structure)
    roles = torch.nn.functional.normalize(embeddings, dim=1)[structure.embedding_index]
    cosines = 20 * roles[:, 0] @ roles[:, 1].T
    cosines[0, 1] = -torch.inf  # text 4 is the positive of row 1
    torch.testing.assert_close(term.total, torch.nn.functional.cross_entropy(cosines, torch.arange(4)))


@pytest.mark.parametrize("name", ["B", "C"])
def test_the_reverse_term_lets_positives_find_their_texts(name: str) -> None:
    embeddings, structure = make(4, name)
    ids = structure.text_ids.clone()
    ids[2, 1] = ids[0, 0]  # the positive of row 2 is the text of row 0
    known = torch.tensor([[1, int(ids[1, 0]), int(ids[3, 1])]])  # and that of row 3 a positive of row 1's text too
    structure = replace(structure, text_ids=ids, known_positives=known)
    settings = {"cosine_w": 0.0, "ibn_w": 0.0, "angle_w": 0.0, "reverse_w": 1.0}
    term = CombinedLoss(LossConfig(**settings), FORMATS[name], 8)(embeddings, structure)
    roles = torch.nn.functional.normalize(embeddings, dim=1)[structure.embedding_index]
    negatives = torch.nn.functional.normalize(embeddings, dim=1)[structure.negatives.embedding_index]
    cosines = 20 * roles[:, 1] @ torch.cat([roles[:, 0], negatives]).T
    cosines[2, 0] = cosines[3, 1] = -torch.inf
    assert term.terms.keys() == {"reverse"}
    torch.testing.assert_close(term.total, torch.nn.functional.cross_entropy(cosines, torch.arange(4)))
    other_way = CombinedLoss(LossConfig(0.0, 1.0, 0.0, reverse_w=0.0), FORMATS[name], 8)
    flipped = replace(structure, embedding_index=structure.embedding_index.flip(1), text_ids=ids.flip(1))
    torch.testing.assert_close(other_way(embeddings, flipped).total, term.total, rtol=0, atol=0)


def make(rows: int = 6, name: str = "A", dimensions: int = 8, seed: int = 0) -> tuple[Tensor, BatchStructure]:
    data_format, generator = FORMATS[name], torch.Generator().manual_seed(seed)
    roles = len(data_format.roles)
    index = torch.arange(rows * roles).view(rows, roles)
    labels = torch.arange(rows).float() % 2 if data_format.labelled else None
    structure = BatchStructure.of_columns(data_format, index, index, labels)
    return torch.randn(rows * roles, dimensions, generator=generator), structure


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("A", {"cosine": 1.0, "ibn": 20.0, "angle": 1.0}),
        ("B", {"ibn": 10.0, "angle": 1.0, "reverse": 10.0}),
        ("C", {"ibn": 20.0}),
    ],
)
def test_null_weights_are_those_of_the_format(name: str, weights: dict[str, float]) -> None:
    embeddings, structure = make(name=name)
    by_default = CombinedLoss(LossConfig(), FORMATS[name], 8)(embeddings, structure)
    settings = {f"{term}_w": weights.get(term, 0.0) for term in ("cosine", "ibn", "angle", "reverse")}
    spelled_out = CombinedLoss(LossConfig(**settings), FORMATS[name], 8)(embeddings, structure)
    assert set(by_default.terms) == set(weights)
    assert by_default.total.item() == spelled_out.total.item()
    weighted = sum(weights[term] * value for term, value in by_default.terms.items())
    assert by_default.total.item() == pytest.approx(float(weighted), rel=1e-6)


@pytest.mark.parametrize("name", ["A", "B", "C"])
def test_total_is_the_weighted_sum_and_terms_carry_no_gradient(name: str) -> None:
    embeddings, structure = make(name=name)
    embeddings.requires_grad_()
    result = CombinedLoss(LossConfig(0.5, 35.0, 2.0), FORMATS[name], 8)(embeddings, structure)
    weights = {"cosine": 0.5, "ibn": 35.0, "angle": 2.0, "reverse": 35.0}
    expected = sum(weights[term] * value for term, value in result.terms.items())
    assert result.total.item() == pytest.approx(float(expected), rel=1e-6)
    assert result.total.requires_grad
    assert not any(value.requires_grad for value in result.terms.values())


def test_format_c_multiplies_by_ibn_w_and_has_no_other_term() -> None:
    embeddings, structure = make(name="C")
    single, many = (CombinedLoss(LossConfig(9.0, w, 9.0), FORMATS["C"], 8)(embeddings, structure) for w in (1.0, 30.0))
    assert set(many.terms) == {"ibn"}
    assert many.total.item() == pytest.approx(30 * single.total.item(), rel=1e-6)
    assert many.terms["ibn"].item() == single.terms["ibn"].item()


def test_rows_point_into_the_embeddings() -> None:
    embeddings, structure = make()
    order = torch.randperm(len(embeddings), generator=torch.Generator().manual_seed(3))
    moved = BatchStructure(
        structure.format, torch.argsort(order)[structure.embedding_index], structure.text_ids, structure.labels
    )
    objective = CombinedLoss(LossConfig(), FORMATS["A"], 8)
    assert objective(embeddings[order], moved).total.item() == objective(embeddings, structure).total.item()


@pytest.mark.parametrize("name", ["A", "B"])
def test_odd_dimensions_are_refused_with_the_angle_term(name: str) -> None:
    with pytest.raises(ConfigError) as error:
        CombinedLoss(LossConfig(), FORMATS[name], 7)
    assert str(error.value) == (
        "loss.angle_w=1 cannot work with 7 dimensions: the angle loss splits an embedding into a real and an "
        "imaginary half; choose a model of even width or loss.angle_w=0."
    )


@pytest.mark.parametrize(("name", "config"), [("A", LossConfig(angle_w=0)), ("C", LossConfig())])
def test_odd_dimensions_work_without_it(name: str, config: LossConfig) -> None:
    embeddings, structure = make(name=name, dimensions=7)
    assert CombinedLoss(config, FORMATS[name], 7)(embeddings, structure).total.isfinite()


def test_no_weight_above_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match="are all 0, so there is nothing to learn"):
        LossConfig(0.0, 0.0, 0.0)
    with pytest.raises(
        ConfigError, match=re.escape("loss.ibn_w=0 and loss.reverse_w=0 leave nothing to learn: format C")
    ):
        CombinedLoss(LossConfig(ibn_w=0.0), FORMATS["C"], 8)


@pytest.mark.parametrize(
    ("above", "positive"), [(None, [0, 1, 1, 1, 1]), (3.0, [0, 0, 0, 1, 1]), (4.0, [0, 0, 0, 0, 1])]
)
def test_positive_above_decides_which_graded_pairs_attract(above: float | None, positive: list[int]) -> None:
    embeddings, structure = make(rows=5)
    graded = BatchStructure(
        structure.format, structure.embedding_index, structure.text_ids, torch.tensor([0.0, 0.5, 3.0, 4.0, 5.0])
    )
    objective = CombinedLoss(LossConfig(0.0, 1.0, 0.0, positive_above=above), FORMATS["A"], 8)
    pairs, which = l2_normalize(embeddings).view(5, 2, 8), torch.tensor(positive).bool()
    expected = nt_xent(pairs, which, structure.text_ids, structure.known_positives, 20.0)
    assert objective(embeddings, graded).total.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("name", ["A", "B", "C"])
def test_keep_counts_equal_texts_and_known_positives_as_any_others(name: str) -> None:
    embeddings, structure = make(name=name)
    ids = structure.text_ids.clone()
    ids[3, 0] = ids[1, 0]
    weights = LossConfig(0.0, 1.0, 0.0, ibn_tau=1.0)
    known_positives = torch.tensor([[1, ids[1, 0], ids[2, 1]]])  # in format A row 1 is positive

    def loss_of(duplicates: str, *texts: Tensor) -> float:
        changed = replace(structure, **dict(zip(("text_ids", "known_positives"), texts, strict=False)))
        return CombinedLoss(weights, FORMATS[name], 8, duplicates)(embeddings, changed).total.item()

    for duplicates in ("mask", "drop"):
        both = loss_of(duplicates, ids, known_positives)
        assert both < loss_of(duplicates, ids) < loss_of(duplicates, structure.text_ids)
        assert both < loss_of(duplicates, structure.text_ids, known_positives) < loss_of(duplicates, structure.text_ids)
    assert loss_of("keep", ids, known_positives) == loss_of("mask", structure.text_ids)


@pytest.mark.parametrize("name", ["A", "B", "C"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_embeddings_of_large_norm_stay_finite(name: str, dtype: torch.dtype) -> None:
    embeddings, structure = make(name=name)
    large = (300 * embeddings).to(dtype).requires_grad_()
    assert large.float().norm(dim=-1).min() > 256
    result = CombinedLoss(LossConfig(1.0, 20.0, 1.0), FORMATS[name], 8)(large, structure)
    result.total.backward()
    assert large.grad is not None
    assert large.grad.isfinite().all()
    exact = CombinedLoss(LossConfig(1.0, 20.0, 1.0), FORMATS[name], 8)(large.detach().float(), structure)
    assert result.total.dtype == torch.float32
    assert result.total.item() == exact.total.item()


@pytest.mark.parametrize("name", ["A", "B", "C"])
def test_autocast_changes_nothing(name: str) -> None:
    embeddings, structure = make(name=name)
    objective = CombinedLoss(LossConfig(1.0, 20.0, 1.0), FORMATS[name], 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert (embeddings @ embeddings.T).dtype == torch.bfloat16
        inside = objective(embeddings, structure).total
    assert inside.dtype == torch.float32
    assert inside.item() == objective(embeddings, structure).total.item()


@pytest.mark.parametrize("name", ["A", "B", "C"])
def test_zero_vectors_give_finite_loss_and_gradient(name: str) -> None:
    embeddings, structure = make(name=name)
    embeddings[[0, 1, 4]] = 0
    embeddings.requires_grad_()
    total = CombinedLoss(LossConfig(1.0, 20.0, 1.0), FORMATS[name], 8)(embeddings, structure).total
    total.backward()
    assert total.isfinite()
    assert embeddings.grad is not None
    assert embeddings.grad.isfinite().all()


@pytest.mark.parametrize("name", ["A", "B", "C"])
def test_a_single_row_works(name: str) -> None:
    embeddings, structure = make(rows=1, name=name)
    embeddings.requires_grad_()
    total = CombinedLoss(LossConfig(), FORMATS[name], 8)(embeddings, structure).total
    total.backward()
    assert total.isfinite()
    assert embeddings.grad is not None
    assert embeddings.grad.isfinite().all()
