"""The complete objective: the combined loss, of one layer or of all (Espresso), plus the distillation of a teacher."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from angle.config import TeacherConfig
from angle.objective.combined import CombinedLoss, LossOutput
from angle.objective.distillation import StudentTeacherStates, distillation_loss
from angle.objective.espresso import EspressoLoss
from angle.structures import BatchStructure


class Objective:
    """loss + teacher.weight * distillation loss; there may be a loss for each of several sources of rows."""

    def __init__(self, losses: Sequence[CombinedLoss] | Sequence[EspressoLoss], teacher: TeacherConfig) -> None:
        """Combine losses, which need the same depths, and the settings of a teacher."""
        self.losses = losses
        self.teacher = teacher

    @property
    def depths(self) -> tuple[int, ...] | None:
        """Depths whose embeddings the loss needs, the last layer at the end; None for just the last layer."""
        loss = self.losses[0]
        return loss.depths if isinstance(loss, EspressoLoss) else None

    def __call__(self, embeddings: Tensor, structure: BatchStructure) -> LossOutput:
        """Return the loss of a batch, without the distillation.

        Args:
            embeddings: (N, D), or (N, K, D) if there are K `depths`.
            structure: its indices point into the embeddings.

        """
        return self.losses[structure.loss](embeddings, structure)

    def distillation(self, states: StudentTeacherStates) -> Tensor:
        """Return these states' part of the distillation loss, a sum over the global batch, before `teacher.weight`."""
        return distillation_loss(states, self.teacher)
