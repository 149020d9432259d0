"""Semantic textual similarity: do the similarities of labelled pairs rank like their labels?"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from torch import Tensor

from angle.config import LimitsConfig, SourceConfig
from angle.data.corpus import Corpus
from angle.data.distinct_texts import Tokenizer
from angle.data.loading import load_corpus
from angle.data.purposes import source_label
from angle.errors import DataError
from angle.evaluation.evaluator import Encode, Metric, RowValues, RunContext
from angle.evaluation.metrics import Floats, best_accuracy, pearson, similarities, spearman

if TYPE_CHECKING:
    from angle.modeling.encoder import Encoder

#: Label above which a pair is positive, as in angle_emb.
DEFAULT_POSITIVE_ABOVE = 0.5
#: Is recorded, and told by model cards; it chooses no model, because it also depends on the labels' scale.
PEARSON = Metric("pearson", "Pearson", "Pearson correlation of cosine similarities", hub_type="pearson_cosine")


class StsEvaluator:
    """Spearman's correlation of the pairs' cosines with their labels, the metric that the field reports."""

    name = "sts"
    purpose = "valid_sts"
    formats = frozenset("A")
    metric = Metric("spearman", "Spearman", "Spearman correlation of cosine similarities", hub_type="spearman_cosine")

    def __init__(self, corpus: Corpus, context: RunContext | None = None) -> None:
        """Take the pairs."""
        self.corpus = corpus

    def run(self, encode: Encode) -> Iterator[tuple[str, float]]:
        """Yield `spearman`, and Pearson's correlation beside it."""
        scores = self.score_pairs(encode)
        yield self.metric.name, scores.spearman
        yield PEARSON.name, pearson(scores.scores["cosine"], scores.labels)

    def row_values(self, encode: Encode) -> RowValues:
        """Return the pairs' cosines and labels."""
        pairs = self.score_pairs(encode)
        return RowValues(pairs.scores["cosine"], pairs.labels)

    def score_pairs(self, encode: Encode) -> PairScores:
        """Return the similarities of the pairs, from which all other metrics follow."""
        return pair_scores(encode(self.corpus.tokens), self.corpus)


@dataclass(frozen=True)
class PairScores:
    """The scored pairs of one task."""

    labels: npt.NDArray[np.float32]
    scores: dict[str, Floats]
    """Similarities (P,) by name: cosine, dot, manhattan, euclidean."""

    @property
    def spearman(self) -> float:
        """Spearman's correlation of the cosines."""
        return spearman(self.scores["cosine"], self.labels)

    def metrics(self, positive_above: float | None = None) -> dict[str, float]:
        """Return all correlations, and the best accuracy of the cosine together with its threshold.

        Args:
            positive_above: label above which a pair is positive; None: `positive_threshold`.

        """
        if positive_above is None:
            positive_above = positive_threshold(self.labels)
        metrics = {f"spearman_{name}": spearman(score, self.labels) for name, score in self.scores.items()}
        metrics |= {f"pearson_{name}": pearson(score, self.labels) for name, score in self.scores.items()}
        accuracy, threshold = best_accuracy(self.scores["cosine"], self.labels > positive_above)
        metrics |= {"accuracy": accuracy, "accuracy_threshold": threshold, "positive_above": positive_above}
        return metrics | {"pairs": float(len(self.labels))}


def positive_threshold(labels: npt.NDArray[np.float32]) -> float:
    """Return the label above which pairs are positive: 0.5, or the middle of labels that are all on one side of it."""
    low, high = float(labels.min()), float(labels.max())
    return DEFAULT_POSITIVE_ABOVE if low <= DEFAULT_POSITIVE_ABOVE < high else (low + high) / 2


def score_pairs(
    encoder: Encoder, corpus: Corpus, batch_size: int = 64, progress: Callable[[int], object] | None = None
) -> PairScores:
    """Return the similarities of a format-A corpus, encoding each distinct text once."""
    return pair_scores(encoder.encode_tokens(corpus.tokens, batch_size, progress), corpus)


def pair_scores(embeddings: Tensor, corpus: Corpus) -> PairScores:
    """Return the similarities of a format-A corpus, given the embeddings (N, D) of its texts."""
    assert corpus.labels is not None
    left, right = text_pairs(corpus).T
    return PairScores(corpus.labels, similarities(embeddings[left], embeddings[right]))


def text_pairs(corpus: Corpus) -> npt.NDArray[np.int64]:
    """Return the text ids (P, 2) of a format-A corpus; of a cell with several texts, the same one each time."""
    return corpus.draw_texts(np.arange(len(corpus)), seed=0, epoch=0).pairs


def word_overlap(corpus: Corpus, special_ids: set[int]) -> float:
    """Return the primary metric of a baseline that ignores meaning: the Jaccard overlap of two texts' tokens."""
    assert corpus.labels is not None
    bounds = corpus.tokens.offsets
    bags = [set(corpus.tokens.ids[a:b].tolist()) - special_ids for a, b in itertools.pairwise(bounds)]
    overlap = [len(bags[a] & bags[b]) / max(1, len(bags[a] | bags[b])) for a, b in text_pairs(corpus).tolist()]
    return spearman(overlap, corpus.labels)


def load_sts(source: SourceConfig, purpose: str, tokenizer: Tokenizer, limits: LimitsConfig | None = None) -> Corpus:
    """Return a format-A corpus for which a correlation can be computed.

    Raises:
        DataError: unreadable rows, or labels that are all the same.

    """
    corpus = load_corpus(source, purpose, tokenizer, "A", limits)
    check_labels_vary(corpus, source_label(purpose, source))
    return corpus


def labels_vary(corpus: Corpus) -> bool:
    """Return whether the labels of a format-A corpus differ; with equal ones nothing correlates."""
    assert corpus.labels is not None
    return bool(np.ptp(corpus.labels) > 0)


def check_labels_vary(corpus: Corpus, name: str) -> None:
    """Raise DataError if all labels of a format-A corpus are the same, so that nothing correlates with them."""
    if not labels_vary(corpus):
        assert corpus.labels is not None
        raise DataError(
            f"{name}: every label is {corpus.labels[0]:g}, so no correlation exists; give graded or mixed labels."
        )


EVALUATOR = StsEvaluator
