"""The AnglE loss: a weighted sum of named terms over one batch of embeddings."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from angle.config import LossConfig
from angle.errors import ConfigError
from angle.objective.contrastive import SINGLE_PROCESS, QueryShards, info_nce, nt_xent
from angle.objective.dtypes import at_least_float32
from angle.objective.normalize import l2_normalize
from angle.objective.ranking import angle_scores, cosent_loss, cosine_scores
from angle.structures import DataFormat, Structure


@dataclass(frozen=True)
class LossTerms:
    """What a loss returns."""

    total: Tensor
    """Scalar with gradient: the weighted sum."""
    terms: dict[str, Tensor]
    """Each term by name, detached: cosine, ibn and angle before weighting, and the terms of Espresso and a teacher."""


class CombinedLoss:
    """cosine_w * cosine ranking + ibn_w * in-batch contrast + angle_w * angle ranking.

    Format A ranks its labelled pairs. Format B ranks the pairs (text, positive) above all pairs (text, negative).
    Format C has no pairs to rank, only the contrastive term. Everything is computed in float32 (float64 if the
    embeddings are float64), whatever precision the model ran in.
    """

    def __init__(
        self,
        config: LossConfig,
        data_format: DataFormat,
        dimensions: int,
        duplicates: str = "mask",
        query_shards: QueryShards = SINGLE_PROCESS,
    ) -> None:
        """Set the weights, the format, the treatment of duplicates and the processes that split the work.

        Raises:
            ConfigError: an odd number of dimensions with the angle term.

        """
        self.config = config.for_format(data_format.name)
        self.format = data_format
        self.keep_duplicates = duplicates == "keep"
        self.query_shards = query_shards
        if self.config.angle_w and data_format.name != "C" and dimensions % 2:
            raise ConfigError(
                f"loss.angle_w={self.config.angle_w:g} cannot work with {dimensions} dimensions: the angle loss splits "
                f"an embedding into a real and an imaginary half; choose a model of even width or loss.angle_w=0."
            )

    def __call__(self, embeddings: Tensor, structure: Structure) -> LossTerms:
        """Return the loss of a batch.

        Args:
            embeddings: (N, D).
            structure: its `index` (B, R) points into the embeddings.

        """
        assert structure.format == self.format
        with torch.autocast(embeddings.device.type, enabled=False):
            roles = l2_normalize(at_least_float32(embeddings))[structure.index]  # (B, R, D)
            weighted = {
                "cosine": (self.config.cosine_w, self._cosine),
                "ibn": (self.config.ibn_w, self._in_batch),
                "angle": (self.config.angle_w, self._angle),
            }
            if self.format.name == "C":
                weighted = {"ibn": weighted["ibn"]}
            terms = {name: term(roles, structure) for name, (weight, term) in weighted.items() if weight}
            total = torch.stack([(weighted[name][0] or 0.0) * value for name, value in terms.items()]).sum()
        return LossTerms(total, {name: value.detach() for name, value in terms.items()})

    def _cosine(self, roles: Tensor, structure: Structure) -> Tensor:
        return self._ranking(self.config.cosine_tau * cosine_scores(roles[:, :1], roles[:, 1:]), structure)

    def _angle(self, roles: Tensor, structure: Structure) -> Tensor:
        return self._ranking(self.config.angle_tau * angle_scores(roles[:, :1], roles[:, 1:]), structure)

    def _ranking(self, scores: Tensor, structure: Structure) -> Tensor:
        """Return the ranking loss of the similarities (B, R - 1) of each row's first text to its other texts."""
        labels = structure.labels
        if labels is None:  # 1 (positive), 0 (negative); made on the device, as a copy would wait for a GPU
            labels = torch.arange(1, -1, -1, dtype=scores.dtype, device=scores.device).expand_as(scores)
        return cosent_loss(scores.flatten(), labels.flatten())

    def _in_batch(self, roles: Tensor, structure: Structure) -> Tensor:
        ids, known_positives = structure.text_ids, structure.known_positives
        if self.keep_duplicates:  # as if no two texts were equal
            ids, known_positives = torch.arange(ids.numel(), device=ids.device).view_as(ids), known_positives[:0]
        how = ids, known_positives, self.config.ibn_tau, self.query_shards
        if structure.labels is not None:
            return nt_xent(roles, structure.labels > (self.config.positive_above or 0.0), *how)
        return info_nce(roles, *how)
