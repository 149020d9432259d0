"""Measure, on held-out texts, how much merging an adapter into the weights changes embeddings."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from angle.config import ModelConfig, PoolingConfig
from angle.data import sample
from angle.errors import ConfigError
from angle.modeling.encoder import Encoder
from angle.modeling.quantization import compute_dtype

#: Number of texts to compare on, from the test split of the built-in sample.
NUM_TEXTS = 200
#: Largest cosine distance that merging may cause: if matrix products are float32 before and after, and if before they
#: were in 16 bits, or rounded the inputs of 8-bit weights.
TOLERANCE, LOW_PRECISION_TOLERANCE = 1e-4, 1e-2


@dataclass(frozen=True)
class UnmergedEmbeddings:
    """Embeddings of the held-out texts by a model whose adapter is not merged."""

    adapter: str
    embeddings: Tensor
    """(N, D)"""
    tolerance: float
    """Largest cosine distance that merging may cause."""

    def distance(self, merged: Encoder) -> float:
        """Return the largest cosine distance to the merged model's embeddings of the same texts.

        Raises:
            ConfigError: the distance is above the tolerance.

        """
        distance = float((1 - torch.cosine_similarity(self.embeddings, _embed(merged))).max())
        if not distance <= self.tolerance:
            raise ConfigError(
                f"Merging the adapter of {self.adapter} changes embeddings by {distance:.1e} in cosine, where "
                f"{self.tolerance:.0e} is allowed, so nothing is written: use it as it is, with angle's Encoder."
            )
        return distance


def embed_unmerged(model: ModelConfig, pooling: PoolingConfig) -> UnmergedEmbeddings:
    """Return the embeddings before the adapter is merged."""
    encoder = Encoder.load(model, pooling, merge=False).eval()
    in_16_bits = encoder.backbone.dtype != torch.float32 or (
        encoder.load_kbit == 4 and compute_dtype(encoder.device) != torch.float32
    )
    tolerance = LOW_PRECISION_TOLERANCE if in_16_bits or encoder.load_kbit == 8 else TOLERANCE
    return UnmergedEmbeddings(model.adapter or model.name_or_path, _embed(encoder), tolerance)


def _embed(encoder: Encoder) -> Tensor:
    texts = list(dict.fromkeys(str(text) for text in sample.columns("A", "test")["text1"]))[:NUM_TEXTS]
    return encoder.encode(texts, [dict.fromkeys(encoder.tokenizer.columns, "")] * len(texts)).double()
