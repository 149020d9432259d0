"""Triplet accuracy by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from word_vectors import context, corpus_of, word_vectors

from angle.evaluation.evaluators.triplet import TripletAccuracy

TRIPLES = [
    {"text": "owl", "positive": "bird", "negative": "moon"},  # nearer to its positive
    {"text": "fox", "positive": "moon", "negative": "bird"},  # nearer to its negative
    {"text": "red", "positive": "bird", "negative": "crow"},  # equally near to both
    {"text": "one", "positive": "bird", "negative": "moon"},  # nearer by cosine, but not by dot product
]
VECTORS = {
    "owl": (1.0, 0.0), "fox": (1.0, 0.1), "red": (0.0, 1.0), "one": (1.0, 0.2),
    "bird": (1.0, 0.0), "crow": (2.0, 0.0), "moon": (9.0, 9.0),
}  # fmt: skip


def test_triplet_accuracy_matches_reference(tmp_path: Path) -> None:
    evaluator = TripletAccuracy(corpus_of(tmp_path, TRIPLES), context())
    assert dict(evaluator.run(word_vectors(VECTORS))) == {"triplet_accuracy": 2 / 4}


@pytest.mark.parametrize("row", range(4))
def test_a_tie_is_wrong(tmp_path: Path, row: int) -> None:
    """A model that gives all texts one embedding gets nothing right."""
    evaluator = TripletAccuracy(corpus_of(tmp_path, TRIPLES[row : row + 1]), context())
    assert dict(evaluator.run(word_vectors(dict.fromkeys(VECTORS, (1.0, 1.0))))) == {"triplet_accuracy": 0}
