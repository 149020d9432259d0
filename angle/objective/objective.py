"""The whole objective: the AnglE loss, of one layer or of all (Espresso), and the alignment with a teacher."""

from __future__ import annotations

from torch import Tensor

from angle.config import TeacherConfig
from angle.objective.alignment import Aligned, alignment_loss
from angle.objective.angle_loss import AngleLoss, LossTerms
from angle.objective.espresso import EspressoLoss
from angle.structures import Structure


class Objective:
    """loss + teacher.weight * alignment."""

    def __init__(self, loss: AngleLoss | EspressoLoss, teacher: TeacherConfig) -> None:
        """Put the parts together."""
        self.loss = loss
        self.teacher = teacher

    @property
    def depths(self) -> tuple[int, ...] | None:
        """Depths whose embeddings the loss asks for, the last one last; None for the last layer alone."""
        return self.loss.depths if isinstance(self.loss, EspressoLoss) else None

    def __call__(self, embeddings: Tensor, structure: Structure) -> LossTerms:
        """Return the loss of a batch, but for the alignment.

        Args:
            embeddings: (N, D), or (N, K, D) where `depths` asks for K of them.
            structure: whose `index` (B, R) points into them.

        """
        return self.loss(embeddings, structure)

    def alignment(self, states: Aligned) -> Tensor:
        """Return what states add to the alignment, before `teacher.weight`: the whole is the sum over all texts."""
        return alignment_loss(states, self.teacher)
