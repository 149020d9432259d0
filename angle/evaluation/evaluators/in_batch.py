"""In-batch accuracy: does a text's positive rank first among the candidates of a batch?"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from angle.data.corpus import Corpus
from angle.evaluation.evaluator import Encode, Metric, RowValues, RunContext, evenly_sized_batches
from angle.objective.contrastive import FalseNegativeMask
from angle.structures import BatchStructure

#: Maximum number of cosines that are held at a time, though at least those of one text.
MAX_COSINES = 2**22


class InBatchAccuracy:
    """The fraction of texts whose nearest candidate is their own positive; a tie is wrong.

    Candidates are those of the in-batch loss: all positives of the batch and, in format B, all negatives, except
    the text's duplicates and its other known positives. It depends on the batch size, as that loss does.
    """

    name = "in_batch"
    purpose = "valid"
    formats = frozenset("BC")
    metric = Metric("in_batch_accuracy", "in-batch accuracy", "texts whose nearest candidate in a batch is their own")

    def __init__(self, corpus: Corpus, context: RunContext) -> None:
        """Take the rows, and the number of rows in a batch of training."""
        self.corpus = corpus
        self.batch_size = context.batch_size

    def run(self, encode: Encode) -> Iterator[tuple[str, float]]:
        """Yield `in_batch_accuracy`."""
        yield self.metric.name, self.row_values(encode).metric()

    def row_values(self, encode: Encode) -> RowValues:
        """Return 1 for each row whose text's nearest candidate is its own, 0 for the others."""
        embeddings = encode(self.corpus.tokens)
        correct = [
            positive_ranks_first(embeddings[batch.text_ids], batch.structure)
            for batch in evenly_sized_batches(self.corpus, self.batch_size)
        ]
        return RowValues(torch.cat(correct).double().numpy())


def positive_ranks_first(embeddings: Tensor, structure: BatchStructure) -> Tensor:
    """Return (B,), bool: whether each row's text is nearer to its positive than to any other candidate.

    Args:
        embeddings: (N, D).
        structure: its indices point into the embeddings.

    """
    unit = F.normalize(embeddings.double(), dim=-1)
    queries, positives = unit[structure.embedding_index].unbind(1)
    candidates = torch.cat([positives, unit[structure.negatives.embedding_index]])  # (C, D)
    ids, candidate_ids = structure.text_ids, torch.cat([structure.text_ids[:, 1], structure.negatives.text_ids])
    pairs = torch.cat([ids, structure.known_positives[:, 1:]])
    all_ids = torch.cat([ids[:, 0], candidate_ids])
    mask = FalseNegativeMask.from_text_ids(all_ids, ids[:, 0], candidate_ids, *torch.cat([pairs, pairs.flip(1)]).T)
    ranks_first = []
    for rows in torch.split(torch.arange(len(queries)), max(1, MAX_COSINES // len(candidates))):
        cosines = queries[rows] @ candidates.T
        own = torch.arange(len(rows)), rows
        positive = cosines[own]
        excluded = mask.for_queries(slice(int(rows[0]), int(rows[-1]) + 1))
        excluded[own] = True
        ranks_first.append(positive > cosines.masked_fill_(excluded, -torch.inf).amax(dim=1))
    return torch.cat(ranks_first)


EVALUATOR = InBatchAccuracy
