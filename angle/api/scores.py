"""What class AnglE's evaluation returns, and angle_emb's evaluator of pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from angle.errors import DataError
from angle.evaluation.metrics import pearson, similarities, spearman


class Evaluated(float):
    """A Spearman correlation, one number as angle_emb returns it, which unpacks into (correlation, accuracy)."""

    accuracy: float

    def __new__(cls, correlation: float, accuracy: float) -> Evaluated:
        """Return the correlation, with the accuracy beside it."""
        score = super().__new__(cls, correlation)
        score.accuracy = accuracy
        return score

    def __iter__(self) -> Iterator[float]:
        """Yield the correlation and the accuracy."""
        yield float(self)
        yield self.accuracy

    def __getnewargs__(self) -> tuple[float, float]:  # type: ignore[override]
        """Return what makes a copy."""
        return float(self), self.accuracy


class Encodes(Protocol):
    """A model with angle_emb's method `encode`."""

    def encode(self, inputs: list[str], **options: Any) -> Any:
        """Return the embeddings (N, D)."""


class CorrelationEvaluator:
    """Correlations of the similarities of pairs of texts with their labels."""

    METRICS = tuple(
        f"{correlation}_{similarity}"
        for similarity in ("cosine", "manhattan", "euclidean", "dot")
        for correlation in ("pearson", "spearman")
    )

    def __init__(
        self, text1: Sequence[str], text2: Sequence[str], labels: Sequence[float], batch_size: int = 32
    ) -> None:
        """Take the pairs.

        Args:
            text1: P texts.
            text2: as many.
            labels: as many numbers, of any scale.
            batch_size: texts per batch.

        Raises:
            DataError: they are not equally many.

        """
        if not len(text1) == len(text2) == len(labels):
            raise DataError(
                f"text1, text2 and labels have {len(text1)}, {len(text2)} and {len(labels)} entries: give one of each "
                f"for every pair."
            )
        self.text1, self.text2, self.labels, self.batch_size = list(text1), list(text2), list(labels), batch_size

    def __call__(self, model: Encodes, show_progress: bool = True, **options: Any) -> dict[str, float]:
        """Return each of `METRICS`, given a model; `options` are those of its `encode`."""
        options = {"batch_size": self.batch_size, "show_progress": show_progress} | options
        left, right = (
            torch.from_numpy(np.asarray(model.encode(texts, **options), np.float64))
            for texts in (self.text1, self.text2)
        )
        scores = similarities(left, right)
        functions = {"pearson": pearson, "spearman": spearman}
        names = (name.split("_") for name in self.METRICS)
        return {f"{kind}_{name}": functions[kind](scores[name], self.labels) for kind, name in names}

    def list_all_metrics(self) -> list[str]:
        """Return the names of the metrics."""
        return list(self.METRICS)
