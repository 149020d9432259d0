"""In-batch accuracy by hand, and against a naive count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from word_vectors import context, corpus_of, word_vectors

from angle.data.plan import BatchSpec
from angle.evaluation.evaluators import in_batch
from angle.evaluation.evaluators.in_batch import InBatchAccuracy

VECTORS = {
    "owl": (1.0, 0.0), "bird": (1.0, 0.2), "crow": (1.0, 0.08),
    "red": (0.0, 1.0), "colour": (0.1, 1.0), "green": (0.9, 0.1),
}  # fmt: skip


def accuracy(folder: Path, rows: list[dict[str, Any]], batch_size: int = 8) -> float:
    evaluator = InBatchAccuracy(corpus_of(folder, rows), context(batch_size))
    return dict(evaluator.run(word_vectors(VECTORS)))["in_batch_accuracy"]


def test_own_positive_must_rank_first(tmp_path: Path) -> None:
    rows = [{"text": "owl", "positive": "bird"}, {"text": "red", "positive": "colour"}]
    assert accuracy(tmp_path, rows) == 1
    rows += [{"text": "green", "positive": "crow"}]  # crow is nearer to the owl than its bird is
    assert accuracy(tmp_path, rows) == pytest.approx(2 / 3)


def test_a_batch_is_no_larger_than_in_training(tmp_path: Path) -> None:
    rows = [{"text": "owl", "positive": "bird"}, {"text": "green", "positive": "crow"}]
    assert accuracy(tmp_path, rows) == 1 / 2
    assert accuracy(tmp_path, rows, batch_size=1) == 1


def test_negatives_are_candidates_too(tmp_path: Path) -> None:
    """In format B, those of all rows."""
    rows = [
        {"text": "owl", "positive": "bird", "negative": "red"},
        {"text": "red", "positive": "colour", "negative": "crow"},
    ]
    assert accuracy(tmp_path, rows) == 1 / 2


@pytest.mark.parametrize(
    "also",
    [
        {"text": "owl", "positive": "crow"},  # the text's other positive
        {"text": "crow", "positive": "owl"},  # the other way round
        {"text": "red", "positive": "owl"},  # the text itself
    ],
)
def test_known_positives_and_duplicates_are_not_wrong(tmp_path: Path, also: dict[str, Any]) -> None:
    second_is_wrong = also["text"] == "red"  # its positive is the owl, and it is nearer to the bird
    value = accuracy(tmp_path, [{"text": "owl", "positive": "bird"}, also])
    assert value == (1 / 2 if second_is_wrong else 1)


def test_a_positive_that_was_not_drawn_is_not_wrong(tmp_path: Path) -> None:
    """The owl's own positive is the bird; the crow, which is nearer, is in the batch because of another row."""
    rows = [{"text": "owl", "positive": ["bird", "crow"]}, {"text": "green", "positive": "crow"}]
    drawn = corpus_of(tmp_path, rows).draw_texts(np.arange(2), seed=BatchSpec(8).seed, epoch=0).pairs
    assert drawn[0, 1] != drawn[1, 1]
    assert accuracy(tmp_path, rows) == 1


@pytest.mark.parametrize("max_cosines", [in_batch.MAX_COSINES, 24, 1])  # all rows at once, three and one, one each
def test_in_batch_accuracy_matches_naive_implementation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_cosines: int
) -> None:
    monkeypatch.setattr(in_batch, "MAX_COSINES", max_cosines)
    random = np.random.default_rng(0)
    words = [f"w{number}" for number in range(30)]
    vectors = {word: tuple(random.normal(size=3)) for word in words}
    rows = [dict(zip(("text", "positive", "negative"), random.choice(words, 3), strict=True)) for _ in range(40)]
    correct = 0
    for batch in (rows[first : first + 4] for first in range(0, 40, 4)):  # equal batches of 4
        known = {(row["text"], row["positive"]) for row in batch}
        for row in batch:
            query = np.array(vectors[row["text"]])
            cosine = {
                word: query @ np.array(vectors[word]) / np.linalg.norm(query) / np.linalg.norm(vectors[word])
                for other in batch
                for word in (other["positive"], other["negative"])
                if word != row["text"] and (row["text"], word) not in known and (word, row["text"]) not in known
            }
            positive = np.array(vectors[row["positive"]])
            own = query @ positive / np.linalg.norm(query) / np.linalg.norm(positive)
            correct += own > max(cosine.values())
    evaluator = InBatchAccuracy(corpus_of(tmp_path, rows), context(4))
    ((_, value),) = evaluator.run(word_vectors(vectors))
    assert value == pytest.approx(correct / 40)
    assert 5 < correct < 35
