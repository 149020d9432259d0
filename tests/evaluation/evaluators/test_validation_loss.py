"""The validation loss by hand: terms, weights, and the mean over equal batches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from word_vectors import context, corpus_of, word_vectors

from angle.evaluation.evaluators.loss import ValidationLoss

VECTORS = {"owl": (1.0, 0.0), "bird": (0.8, 0.6), "red": (0.0, 1.0), "colour": (0.6, 0.8), "fox": (-1.0, 0.0)}
ROWS = [{"text": "owl", "positive": "bird"}, {"text": "red", "positive": "colour"}, {"text": "fox", "positive": "red"}]


def in_batch_loss(rows: list[dict[str, str]], tau: float) -> float:
    """Return the mean cross entropy of finding each row's positive; no two texts are known positives here."""
    texts, positives = (torch.tensor([VECTORS[row[role]] for row in rows]) for role in ("text", "positive"))
    logits = tau * texts @ positives.T
    if len(rows) == 3:
        logits[1, 2] = -torch.inf  # red is no negative of itself
    return float(torch.nn.functional.cross_entropy(logits, torch.arange(len(rows))))


def test_the_weighted_sum_and_its_terms(tmp_path: Path) -> None:
    evaluator = ValidationLoss(corpus_of(tmp_path, ROWS), context(8, ibn_w=3.0, ibn_tau=2.0))
    expected = in_batch_loss(ROWS, 2.0)
    values = dict(evaluator.run(word_vectors(VECTORS)))
    assert values == pytest.approx({"loss": 3 * expected, "loss/ibn": expected}, rel=1e-6)
    assert next(iter(values)) == "loss"


def test_batches_are_evenly_sized_and_at_most_as_in_training(tmp_path: Path) -> None:
    """Four rows in batches of three at most: two of two, not of three and of one, which has no loss."""
    rows = [*ROWS[:2], {"text": "fox", "positive": "colour"}, {"text": "bird", "positive": "owl"}]
    evaluator = ValidationLoss(corpus_of(tmp_path, rows), context(3, ibn_w=1.0, ibn_tau=2.0))
    expected = (in_batch_loss(rows[:2], 2.0) + in_batch_loss(rows[2:], 2.0)) / 2
    assert dict(evaluator.run(word_vectors(VECTORS)))["loss"] == pytest.approx(expected, rel=1e-6)
