"""Espresso embeddings (ESE): every layer, and the first dimensions alone, learn to represent a text.

Li, Li, Li, Xie and Li, "ESE: Espresso Sentence Embeddings", ICLR 2025 (arXiv:2402.14776), as its published code
computes it, with three corrections: the second-to-last layer has a loss of its own, the compression is exact and the
same on every process, and the teacher's term (see `angle.objective.distillation`) contributes to the gradient.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from angle.config import EseConfig
from angle.errors import ConfigError
from angle.objective.combined import CombinedLoss, LossOutput
from angle.objective.distillation import distances
from angle.objective.dtypes import at_least_float32
from angle.structures import BatchStructure


class EspressoLoss:
    """The AnglE loss of the last layer at full width and of every layer's first k dimensions, plus their compression.

    With t and h_i the embeddings at depths L and i, l the AnglE loss and P the distance of the first k dimensions from
    a compression of all dimensions to k (see `compress`):

        l(t) + l(t[:k]) + P(t) + 1 / (L - 1) * sum over i = 1 ... L - 1 of (l(h_i[:k]) + P(h_i)) / (1 + ln(1 + i))

    With `compat` the sum runs over i = 0 ... L - 2, as in the reference.
    """

    def __init__(self, loss: CombinedLoss, config: EseConfig, layers: int, dimensions: int) -> None:
        """Set the depths and their weights.

        Raises:
            ConfigError: more dimensions to compress to than the embeddings have.

        """
        if config.compression_size > dimensions:
            raise ConfigError(
                f"ese.compression_size={config.compression_size} cannot work: the model's embeddings have {dimensions} "
                f"dimensions; choose an even number up to that."
            )
        inner_depths = range(layers - 1) if config.compat else range(1, layers)
        self.loss, self.config = loss, config
        self.depths = (*inner_depths, layers)
        self.weights = [1 / (layers - 1) / (1 + math.log(1 + depth)) for depth in inner_depths]

    def __call__(self, embeddings: Tensor, structure: BatchStructure) -> LossOutput:
        """Return the loss of a batch.

        Args:
            embeddings: (N, K, D), one slice for each of `depths`.
            structure: its indices point into the embeddings.

        """
        compressed_dim = self.config.compression_size
        *inner, last = at_least_float32(embeddings).unbind(1)
        full_loss = self.loss(last, structure)
        narrow_loss = self.loss(last[:, :compressed_dim], structure).total
        layers_loss = compression_loss = last.new_zeros(())
        for weight, states in zip(self.weights, inner, strict=True):
            layers_loss = layers_loss + weight * self.loss(states[:, :compressed_dim], structure).total
        if self.config.pca:
            with torch.autocast(embeddings.device.type, enabled=False):
                for weight, states in zip([*self.weights, 1.0], [*inner, last], strict=True):
                    compression_loss = compression_loss + weight * self._compression(
                        states[structure.flat_embedding_index]
                    )
        terms = {"narrow": narrow_loss.detach(), "layers": layers_loss.detach()}
        if self.config.pca:
            terms["compression"] = compression_loss.detach()
        return LossOutput(full_loss.total + narrow_loss + layers_loss + compression_loss, full_loss.terms | terms)

    def _compression(self, embeddings: Tensor) -> Tensor:
        """Return the distance of the first dimensions of embeddings (M, D) from a compression of all dimensions."""
        compressed_dim = self.config.compression_size
        target = compress(embeddings, compressed_dim)
        return distances(
            embeddings[:, :compressed_dim], target, mse_w=1.0, temperature=self.config.kl_temperature
        ).mean()


@torch.no_grad()
def compress(embeddings: Tensor, compressed_dim: int) -> Tensor:
    """Return embeddings (M, D) compressed to (M, compressed_dim), a target without gradient.

    With X the embeddings, A = softmax(X^T X / sqrt(D)), row by row, and A = U S V^T with the largest singular values
    first, the target is X U S, truncated to its first columns. The largest entry of each column of U is positive, so
    that the same texts give the same target on every process and in every run.
    """
    float64_embeddings = (embeddings if embeddings.device.type in ("cpu", "cuda") else embeddings.cpu()).double()
    attention = torch.softmax(
        float64_embeddings.T @ float64_embeddings / math.sqrt(float64_embeddings.shape[1]), dim=-1
    )
    # The training loop reports non-finite values; the decomposition would fail on them.
    is_finite = attention.isfinite().all()
    # Squares of the singular values, and U: half the work of a full decomposition. In float64, as squaring costs
    # half of the digits. On a GPU the decomposition blocks until it is done.
    squares, vectors = torch.linalg.eigh(torch.where(is_finite, attention @ attention.T, 0.0))
    vectors, squares = vectors[:, -compressed_dim:].flip(1), squares[-compressed_dim:].flip(0)
    largest = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True))
    target: Tensor = float64_embeddings @ (vectors * largest.sign() * squares.clamp(min=0).sqrt())
    return target.masked_fill_(~is_finite, torch.nan).to(embeddings.device, embeddings.dtype)
