"""The protocol of evaluators: each measures a model on some rows and yields named metrics.

An evaluator knows texts by their tokens and models by a way to encode, so that the training loop and evaluate.py run
the same ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from angle.config import LossConfig
from angle.data.collate import collate
from angle.data.corpus import Corpus, RowTexts
from angle.data.plan import BatchSpec
from angle.evaluation.metrics import Floats, spearman
from angle.structures import Batch, DataFormat, Tokens


class Encode(Protocol):
    """A model in evaluation mode, perhaps spread over several processes."""

    def __call__(self, tokens: Tokens, depths: Sequence[int] | None = None) -> Tensor:
        """Return the embeddings of N texts, (N, D) or, for K depths, (N, K, D), as float32 on the CPU."""


@dataclass(frozen=True)
class Metric:
    """What a number measures."""

    name: str
    """As `train.best_metric` and metrics.jsonl call it."""
    label: str
    """As tables and messages call it."""
    description: str
    """In words, for a reader who does not know it."""
    higher_is_better: bool = True
    hub_type: str | None = None
    """The Hugging Face hub's name for it in a model card's metadata; None to leave it out there."""
    is_fraction: bool = True
    """Whether it lies between -1 and 1; people read it times 100, as the field reports it."""

    def format(self, value: float) -> str:
        """Return the value as it is shown everywhere: times 100 with two decimals, or a loss with three."""
        return f"{self._shown_times * value:.{2 if self.is_fraction else 3}f}"

    @property
    def _shown_times(self) -> int:
        return 100 if self.is_fraction else 1

    def is_better(self, value: float, best: float | None, min_gain: float = 0.0) -> bool:
        """Return whether a value is better than the best one so far, if there is one; NaN never is.

        Args:
            value: the new value.
            best: the best one so far.
            min_gain: by how much more it must be better, in units in which it is shown.

        """
        return self.score(value) > (-float("inf") if best is None else self.score(best) + min_gain / self._shown_times)

    def score(self, value: float) -> float:
        """Return the value as a score, of which higher is always better: the value itself or its negative.

        Applied to a score, it returns the value.
        """
        return value if self.higher_is_better else -value


@dataclass(frozen=True)
class RunContext:
    """How a run trains, for evaluators that measure what training minimises."""

    batch_size: int
    """Rows in one evaluation of the objective, over all processes."""
    duplicates: str
    loss: LossConfig
    dimensions: int
    """Width D of an embedding."""
    device: torch.device


@dataclass(frozen=True)
class RowValues:
    """What a metric is computed from, a value for each of R rows, so that a sample of the rows has the metric too."""

    values: Floats
    """(R,): without labels, the metric is their mean."""
    labels: npt.NDArray[np.float32] | None = None
    """(R,): with them, it is Spearman's correlation of the two."""

    def metric(self) -> float:
        """Return the metric on all rows."""
        return float(self.values.mean()) if self.labels is None else spearman(self.values, self.labels)


class EvaluationRows(Protocol):
    """What a run measures its model on: B rows over N distinct texts, such as a `Corpus`."""

    @property
    def format(self) -> DataFormat:
        """The shape of a row."""

    @property
    def tokens(self) -> Tokens:
        """The N distinct texts."""

    @property
    def fingerprint(self) -> str:
        """Hash of texts, structure and labels, before tokenisation."""

    @property
    def unknown(self) -> float:
        """Fraction of tokens that stand for what the vocabulary does not have."""

    def __len__(self) -> int:
        """Return B."""

    def draw_texts(self, rows: npt.NDArray[np.int64], seed: int, epoch: int) -> RowTexts:
        """Return the texts that stand for these rows in one epoch."""


class Evaluator(Protocol):
    """Measures a model."""

    name: str

    def run(self, encode: Encode) -> Iterator[tuple[str, float]]:
        """Yield (name, value) for each metric; a part of one is called METRIC/PART."""


class ValidationEvaluator(Evaluator, Protocol):
    """Measures a model on one of a run's evaluation sets, again and again during training.

    A module of `angle.evaluation.evaluators` offers one by calling it EVALUATOR.
    """

    purpose: str
    """The rows it is for: `valid`, or `valid_sts`, which also stands for `test`."""
    formats: frozenset[str]
    """Names of the formats that its rows may have."""
    metric: Metric
    """Its primary metric, which can choose the best model."""

    def __init__(self, corpus: Any, context: RunContext) -> None:
        """Prepare to measure models on these rows, which are those of `purpose` in one of `formats`."""

    @property
    def corpus(self) -> EvaluationRows:
        """The rows."""

    def row_values(self, encode: Encode) -> RowValues:
        """Return what the primary metric is computed from."""


def with_embedding_cache(encode: Encode) -> Encode:
    """Return a way to encode that remembers the embeddings, so that several evaluators of the same rows share them."""
    cache: dict[tuple[int, tuple[int, ...] | None], tuple[Tokens, Tensor]] = {}

    def cached(tokens: Tokens, depths: Sequence[int] | None = None) -> Tensor:
        key = id(tokens), None if depths is None else tuple(depths)
        if key not in cache:
            cache[key] = tokens, encode(tokens, depths)  # with the tokens, so that no others get their id
        return cache[key][1]

    return cached


def evenly_sized_batches(corpus: Corpus, batch_size: int, duplicates: str = "mask") -> Iterator[Batch]:
    """Yield all rows, in order, in batches whose sizes are as even as possible and at most `batch_size`.

    What is compared within a batch depends on its number of rows, so a small last batch would distort a mean.
    """
    spec = BatchSpec(batch_size, duplicates=duplicates, shuffle=False)
    for rows in np.array_split(np.arange(len(corpus)), -(-len(corpus) // batch_size)):
        yield collate(corpus, rows, 0, spec)
