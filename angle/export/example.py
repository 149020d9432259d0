"""Three sentences, and how similar a model finds them, for the reader of its card to compare with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, cdist, nn

from angle.modeling.embedding_config import EmbeddingConfig
from angle.modeling.tokenizer import TextTokenizer
from angle.structures import Tokens

SENTENCES = (
    "The ferry to the island leaves at noon.",
    "At twelve o'clock a boat sails to the island.",
    "She planted tomatoes behind the house.",
)
#: What stands in a template's further columns.
OTHER_COLUMNS = "..."


@dataclass(frozen=True)
class Example:
    """What a model makes of `SENTENCES`."""

    dimensions: int
    similarities: list[list[float]]
    """(3, 3), by the model's own similarity function."""


def make_example(
    tokenizer: TextTokenizer, encode: Callable[[Tokens], Tensor], embedding_config: EmbeddingConfig
) -> Example | None:
    """Return what a model makes of the sentences; None if it cannot embed them.

    Args:
        tokenizer: the model's.
        encode: returns the model's embeddings (N, D).
        embedding_config: the model's.

    """
    extras = [dict.fromkeys(tokenizer.columns, OTHER_COLUMNS)] * len(SENTENCES)
    try:
        embeddings = encode(tokenizer(SENTENCES, extras)).float()
    except ValueError:  # no room beside the template, too few tokens for the pooling, numbers that are not finite
        return None
    return Example(embeddings.shape[1], similarity_matrix(embeddings, embedding_config.similarity).tolist())


def similarity_matrix(embeddings: Tensor, similarity: str | None) -> Tensor:
    """Return how similar N embeddings (N, D) are to each other, (N, N), as sentence-transformers computes it."""
    if similarity == "dot":
        return embeddings @ embeddings.T
    if similarity in ("euclidean", "manhattan"):
        return -cdist(embeddings, embeddings, p=2.0 if similarity == "euclidean" else 1.0)
    normalized = nn.functional.normalize(embeddings, dim=-1)
    return normalized @ normalized.T
