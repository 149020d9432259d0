"""The combined loss: a weighted sum of terms over one batch of embeddings."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from angle.config import LossConfig
from angle.errors import ConfigError
from angle.objective.contrastive import SINGLE_PROCESS, GuideEmbeddings, QueryShards
from angle.objective.dtypes import at_least_float32
from angle.objective.normalize import l2_normalize
from angle.objective.terms import LOSS_TERMS, TermInputs
from angle.structures import BatchStructure, DataFormat


@dataclass(frozen=True)
class LossOutput:
    """What a loss returns."""

    total: Tensor
    """Scalar with gradient: the weighted sum."""
    terms: dict[str, Tensor]
    """Each term by name, detached and before weighting: those of `LOSS_TERMS`, of Espresso and of a teacher."""


class CombinedLoss:
    """The sum over `LOSS_TERMS` of weight * term.

    Format A ranks its labelled pairs. Format B ranks the pairs (text, positive) of all rows above all pairs (text,
    negative).
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
            ConfigError: nothing to learn, or an odd number of dimensions with the angle term.

        """
        self.config = config.for_format(data_format.name)
        self.format = data_format
        self.keep_duplicates = duplicates == "keep"
        self.query_shards = query_shards
        weights = {term_spec.name: weight for term_spec, weight in self.config.active_terms(data_format.name)}
        self.weighted_terms = [(weights[term.spec.name], term) for term in LOSS_TERMS if term.spec.name in weights]
        for weight, term in self.weighted_terms:
            if term.requires_even_dim and dimensions % 2:
                raise ConfigError(
                    f"loss.{term.spec.weight}={weight:g} cannot work with {dimensions} dimensions: the "
                    f"{term.spec.title} loss splits an embedding into a real and an imaginary half; choose a model of "
                    f"even width or loss.{term.spec.weight}=0."
                )

    def __call__(self, embeddings: Tensor, structure: BatchStructure) -> LossOutput:
        """Return the loss of a batch.

        Args:
            embeddings: (N, D).
            structure: its indices point into the embeddings.

        """
        assert structure.format == self.format
        with torch.autocast(embeddings.device.type, enabled=False):
            inputs = self._term_inputs(l2_normalize(at_least_float32(embeddings)), structure)
            terms = [term.function(inputs, self.config.multiplier(term.spec)) for _, term in self.weighted_terms]
            weighted = [weight * value for (weight, _), value in zip(self.weighted_terms, terms, strict=True)]
            total = torch.stack(weighted).sum()
        names = [term.spec.name for _, term in self.weighted_terms]
        return LossOutput(total, {name: value.detach() for name, value in zip(names, terms, strict=True)})

    def _term_inputs(self, embeddings: Tensor, structure: BatchStructure) -> TermInputs:
        """Return the inputs of the terms, given the L2-normalised embeddings (N, D)."""
        negatives = structure.negatives
        text_ids, negative_ids, known_positives = structure.text_ids, negatives.text_ids, structure.known_positives
        if self.keep_duplicates:  # as if no two texts were equal
            distinct = torch.arange(structure.num_texts, device=text_ids.device)
            text_ids, negative_ids = distinct[: text_ids.numel()].view_as(text_ids), distinct[text_ids.numel() :]
            known_positives = known_positives[:0]
        return TermInputs(
            embeddings=embeddings[structure.embedding_index],
            negatives=embeddings[negatives.embedding_index],
            negative_rows=negatives.rows,
            labels=structure.labels,
            text_ids=text_ids,
            negative_ids=negative_ids,
            known_positives=known_positives,
            positive_above=self.config.positive_above or 0.0,
            guide=self._guide(structure),
            query_shards=self.query_shards,
        )

    def _guide(self, structure: BatchStructure) -> GuideEmbeddings | None:
        """Return what a guide says of the batch's texts."""
        if structure.guide is None:
            return None
        as_first, as_second = structure.guide[:, 0], structure.guide[:, -1]
        first, second = structure.embedding_index.unbind(1)
        pairs = torch.stack([as_first[first], as_second[second]], dim=1)
        return GuideEmbeddings(pairs, as_second[structure.negatives.embedding_index], self.config.guide_margin)
