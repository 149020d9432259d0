"""One evaluation of the objective: a batch through student and teacher, gathered from all processes, into a loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from angle.objective.alignment import Aligned
from angle.objective.angle_loss import LossTerms
from angle.objective.objective import Objective
from angle.structures import Batch
from angle.training.distributed import gather_batch, gather_rows
from angle.training.teacher import Teacher

if TYPE_CHECKING:
    from accelerate import Accelerator


def batch_loss(
    model: Any, objective: Objective, teacher: Teacher | None, batch: Batch, accelerator: Accelerator
) -> LossTerms:
    """Return the loss of the global batch that this process's batch is a share of.

    Args:
        model: the `Student`, as it was prepared for several processes.
        objective: the objective.
        teacher: who is asked for the states to align.
        batch: this process's share.
        accelerator: says where, in which precision, and how many processes take part.

    """
    device, processes = accelerator.device, accelerator.num_processes
    ids, lengths, structure = batch.tensors(device)
    embeddings, states = model(ids, lengths)
    aligned = None
    if teacher is not None:
        uses = np.bincount(batch.structure.index.flatten().numpy(), minlength=len(lengths)).astype(np.float32)
        with accelerator.autocast():
            targets = teacher(ids, lengths, batch.texts)
        weights = np.repeat(uses, lengths) if teacher.of_tokens else uses
        own = Aligned(states, targets, torch.from_numpy(weights).to(device, non_blocking=True))
        aligned = _gather_aligned(own, processes)
    return objective(*gather_batch(embeddings, structure, processes), aligned)


def _gather_aligned(own: Aligned, processes: int) -> Aligned:
    """Return the states of all processes."""
    if processes == 1:
        return own
    parts: list[Tensor] = [gather_rows(part) for part in (own.student, own.teacher, own.uses)]
    return Aligned(*parts)
