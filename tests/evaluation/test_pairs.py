"""Numbers of a page against naive re-implementations."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from angle.evaluation.evaluator import RowValues
from angle.evaluation.pairs import CHANCE, NEGATIVE, POSITIVE, Pairs, alignment_and_uniformity, neighbours, plane
from angle.evaluation.predictions import Predictions


def predictions(data_format: str, *, labels: list[float] | None = None) -> Predictions:
    rng = np.random.default_rng(0)
    roles = {"A": 2, "B": 3, "C": 2}[data_format]
    rows = 6
    vectors = rng.normal(size=(rows * roles, 8))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    texts = np.arange(rows * roles).reshape(rows, roles)
    shown = rng.permutation(rows)
    if labels is None:
        values = RowValues(rng.random(rows))
    else:
        cosines = np.array(
            [float(vectors[a].astype(float) @ vectors[b].astype(float)) for a, b in texts[np.argsort(shown)]]
        )
        values = RowValues(cosines, np.array(labels, np.float32))
    return Predictions(
        "m", 3, "f", data_format, values, [f"text {n}" for n in range(texts.size)], shown, texts, vectors
    )


def test_graded_pairs_are_grouped_by_their_labels() -> None:
    made = predictions("A", labels=[0, 1, 2, 3, 4, 5])
    pairs = Pairs.of(made)
    assert pairs.group_names == ["label 0 to 1.67", "label 1.67 to 3.33", "label 3.33 to 5"]
    assert pairs.labels is not None
    for at, label in enumerate(pairs.labels):
        assert label == made.shown_rows[at]
        assert pairs.groups[at] == pairs.group_names[int(label // 2)]
        left, right = (made.embeddings[side[at]].astype(float) for side in (pairs.left, pairs.right))
        assert pairs.cosines[at] == pytest.approx(left @ right)


def test_few_labels_are_groups_of_their_own() -> None:
    assert Pairs.of(predictions("A", labels=[0, 1, 1, 0, 1, 1])).group_names == ["label 0", "label 1"]


def test_errors_are_distances_between_two_orders() -> None:
    pairs = Pairs.of(predictions("A", labels=[0, 1, 2, 3, 4, 5]))
    assert pairs.labels is not None
    naive = [
        sum(pairs.cosines < cosine) - sum(pairs.labels < label)
        for cosine, label in zip(pairs.cosines, pairs.labels, strict=True)
    ]
    assert pairs.errors() == pytest.approx(np.array(naive) / 5)


@pytest.mark.parametrize(("data_format", "names"), [("B", [CHANCE, NEGATIVE, POSITIVE]), ("C", [CHANCE, POSITIVE])])
def test_rows_without_labels_have_positives_and_texts_of_other_rows(data_format: str, names: list[str]) -> None:
    made = predictions(data_format)
    pairs = Pairs.of(made)
    assert pairs.group_names == names
    columns = {POSITIVE: 1, NEGATIVE: 2}
    for name in names:
        chosen = pairs.of_group(name)
        assert chosen.sum() == 6
        assert pairs.left[chosen].tolist() == made.shown_texts[:, 0].tolist()
        if name in columns:
            assert pairs.right[chosen].tolist() == made.shown_texts[:, columns[name]].tolist()
        else:
            assert not set(zip(pairs.left[chosen], pairs.right[chosen], strict=True)) & {
                (row[0], row[1]) for row in made.shown_texts
            }


def test_alignment_and_uniformity() -> None:
    made = predictions("C")
    vectors = made.embeddings.astype(float)
    alignment = np.mean([((vectors[a] - vectors[b]) ** 2).sum() for a, b in made.shown_texts])
    spread = [np.exp(-2 * ((a - b) ** 2).sum()) for a, b in itertools.combinations(vectors, 2)]
    assert alignment_and_uniformity(made) == pytest.approx((alignment, np.log(np.mean(spread))), abs=2e-3)


def test_the_plane_keeps_more_variance_than_any_two_dimensions() -> None:
    made = predictions("C")
    places = plane(made)
    variances = np.sort(made.embeddings.astype(float).var(axis=0))
    assert places.var(axis=0).sum() >= variances[-2:].sum()
    assert places.mean(axis=0) == pytest.approx(0, abs=1e-9)


def test_neighbours_are_the_nearest_others() -> None:
    made = predictions("C")
    vectors = made.embeddings.astype(float)
    naive = sorted(
        (other for other in range(len(vectors)) if other != 4), key=lambda other: -(vectors[4] @ vectors[other])
    )
    assert [text for text, _ in neighbours(made, 4, 3)] == naive[:3]
