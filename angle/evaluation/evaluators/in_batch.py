"""In-batch accuracy: does a text find its positive among the candidates of a batch?"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from angle.data.corpus import Corpus
from angle.evaluation.evaluator import Encode, Metric, RunContext, equal_batches
from angle.structures import BatchStructure


class InBatchAccuracy:
    """The share of texts whose nearest candidate is their own positive; a tie is wrong.

    Candidates are those of the in-batch loss: all positives of the batch and, in format B, all negatives, except
    the text's duplicates and its other known positives. It depends on the batch size, as that loss does.
    """

    name = "in_batch"
    role = "valid"
    formats = frozenset("BC")
    metric = Metric("in_batch_accuracy", "in-batch accuracy", "texts whose nearest candidate in a batch is their own")

    def __init__(self, corpus: Corpus, context: RunContext) -> None:
        """Take the rows, and the number of rows in a batch of training."""
        self.corpus = corpus
        self.batch_size = context.batch_size

    def run(self, encode: Encode) -> Iterator[tuple[str, float]]:
        """Yield `in_batch_accuracy`."""
        embeddings = encode(self.corpus.tokens)
        correct = [
            finds_positive(embeddings[batch.text_ids], batch.structure)
            for batch in equal_batches(self.corpus, self.batch_size)
        ]
        yield self.metric.name, float(torch.cat(correct).double().mean())


def finds_positive(embeddings: Tensor, structure: BatchStructure) -> Tensor:
    """Return (B,), bool: whether each row's text is nearer to its positive than to any other candidate.

    Args:
        embeddings: (N, D).
        structure: its `index` (B, R) points into the embeddings.

    """
    queries, *candidates = F.normalize(embeddings.double(), dim=-1)[structure.index].unbind(1)
    cosine = queries @ torch.cat(candidates).T  # (B, C); the first B candidates are the positives
    own = torch.eye(*cosine.shape, dtype=torch.bool)
    others = cosine.masked_fill(own | not_negatives(structure), -torch.inf)
    return cosine.diagonal() > others.amax(dim=1)


def not_negatives(structure: BatchStructure) -> Tensor:
    """Return (B, C), bool: which candidates equal a row's text, or are a positive of it somewhere in the batch."""
    ids = structure.text_ids
    queries, candidates = ids[:, :1], ids[:, 1:].T.flatten()
    pairs = torch.cat([ids[:, :2], structure.known_positives[:, 1:]])
    left, right = torch.cat([pairs, pairs.flip(1)]).unbind(1)
    width = int(ids.max()) + 1  # makes one number of a pair of ids
    return (queries == candidates) | torch.isin(queries * width + candidates, left * width + right)


EVALUATOR = InBatchAccuracy
