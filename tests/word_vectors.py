"""A model to test evaluators with: a table of words and their embeddings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from conftest import SpyTokenizer, tokens_of, write_jsonl
from torch import Tensor

from angle.config import LossConfig, SourceConfig
from angle.data.corpus import Corpus
from angle.data.loading import load_corpus
from angle.evaluation.evaluator import Encode, RunContext
from angle.structures import Tokens


def corpus_of(folder: Path, rows: Iterable[Mapping[str, Any]]) -> Corpus:
    """Return the corpus of rows whose texts are single words."""
    return load_corpus(SourceConfig(str(write_jsonl(folder / "rows.jsonl", rows))), "valid", SpyTokenizer())


def word_vectors(vectors: Mapping[str, Sequence[float]]) -> Encode:
    """Return a model that knows the embeddings of these words."""
    by_token = {tokens_of(word): vector for word, vector in vectors.items()}

    def encode(tokens: Tokens, depths: Sequence[int] | None = None) -> Tensor:
        return torch.tensor([by_token[(int(token),)] for token in tokens.ids])

    return encode


def context(batch_size: int = 8, **loss: float) -> RunContext:
    """Return the context of a run with this batch size and these loss weights."""
    return RunContext(batch_size, "mask", LossConfig(**loss), dimensions=2, device=torch.device("cpu"))
