"""Semantic textual similarity: labelled pairs, from single data sets or the usual seven."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from torch import Tensor

from angle.config import SourceConfig
from angle.data.corpus import Corpus, Tokenizer, load_corpus
from angle.data.purposes import source_label
from angle.errors import ConfigError, DataError, nearest
from angle.evaluation.metrics import Floats, best_accuracy, pearson, similarities, spearman

if TYPE_CHECKING:
    from angle.modeling.encoder import Encoder

#: Name of a task -> data set on the hub, in the order of the published tables.
HUB_TASKS = {
    "sts12": "mteb/sts12-sts",
    "sts13": "mteb/sts13-sts",
    "sts14": "mteb/sts14-sts",
    "sts15": "mteb/sts15-sts",
    "sts16": "mteb/sts16-sts",
    "stsb": "mteb/stsbenchmark-sts",
    "sickr": "mteb/sickr-sts",
}
ALIASES = {"sick": "sickr"}
HUB_COLUMNS = {"text1": "sentence1", "text2": "sentence2", "label": "score"}


@dataclass(frozen=True)
class PairScores:
    """The scored pairs of one task."""

    labels: npt.NDArray[np.float32]
    scores: dict[str, Floats]
    """Similarities (P,) by name: cosine, dot, manhattan, euclidean."""

    @property
    def spearman(self) -> float:
        """Spearman's correlation of the cosines, the metric that the field reports."""
        return spearman(self.scores["cosine"], self.labels)

    def metrics(self, positive_above: float = 0.5) -> dict[str, float]:
        """Return all correlations, and the best accuracy of the cosine together with its threshold."""
        table = {f"spearman_{name}": spearman(score, self.labels) for name, score in self.scores.items()}
        table |= {f"pearson_{name}": pearson(score, self.labels) for name, score in self.scores.items()}
        accuracy, threshold = best_accuracy(self.scores["cosine"], self.labels > positive_above)
        return table | {"accuracy": accuracy, "accuracy_threshold": threshold, "pairs": float(len(self.labels))}


def score_pairs(
    encoder: Encoder, corpus: Corpus, batch_size: int = 64, progress: Callable[[int], object] | None = None
) -> PairScores:
    """Return the similarities of a format-A corpus, encoding each distinct text once."""
    return pair_scores(encoder.encode_tokens(corpus.tokens, batch_size, progress), corpus)


def pair_scores(embeddings: Tensor, corpus: Corpus) -> PairScores:
    """Return the similarities of a format-A corpus, given the embeddings (N, D) of its texts."""
    assert corpus.labels is not None
    texts = corpus.draw_text_ids(np.arange(len(corpus)), seed=0, epoch=0)
    return PairScores(corpus.labels, similarities(embeddings[texts[:, 0]], embeddings[texts[:, 1]]))


def word_overlap(corpus: Corpus, special_ids: set[int]) -> float:
    """Return the Spearman correlation of the Jaccard overlap of two texts' tokens, a baseline that ignores meaning."""
    assert corpus.labels is not None
    bounds = corpus.tokens.offsets
    bags = [set(corpus.tokens.ids[a:b].tolist()) - special_ids for a, b in itertools.pairwise(bounds)]
    texts = corpus.draw_text_ids(np.arange(len(corpus)), seed=0, epoch=0)
    overlap = [len(bags[a] & bags[b]) / max(1, len(bags[a] | bags[b])) for a, b in texts.tolist()]
    return spearman(overlap, corpus.labels)


def load_sts(source: SourceConfig, role: str, tokenizer: Tokenizer) -> Corpus:
    """Return a format-A corpus for which a correlation can be computed.

    Raises:
        DataError: unreadable rows, or labels that are all the same.

    """
    corpus = load_corpus(source, role, tokenizer, "A")
    assert corpus.labels is not None
    if np.ptp(corpus.labels) == 0:
        raise DataError(
            f"{source_label(role, source)}: every label is {corpus.labels[0]:g}, so no correlation exists; give graded "
            f"or mixed labels."
        )
    return corpus


def task_source(task: str, columns: dict[str, str], label_map: dict[str, float | None]) -> SourceConfig:
    """Return the source of a task's pairs; the task is a known name or a file in format A.

    Raises:
        ConfigError: it is neither.

    """
    name = ALIASES.get(task, task)
    if name in HUB_TASKS:
        return SourceConfig(HUB_TASKS[name], split="test", columns=dict(HUB_COLUMNS))
    if not Path(task).exists() and "/" not in task and "." not in task:
        known = (*HUB_TASKS, "sts")
        raise ConfigError(
            f"tasks={task} is not known{nearest(task, known) or '.'} Choose from {', '.join(known)}, or "
            f"give a file in format A."
        )
    return SourceConfig(task, split="test", columns=columns, label_map=label_map)
