"""Alignment: a student's states come nearer to those of a teacher that stays as it is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from angle.config import TeacherConfig
from angle.objective.precision import at_least_float32


@dataclass(frozen=True)
class Aligned:
    """States to align: of distinct texts, or of their tokens."""

    student: Tensor
    """(M, D), with gradient."""
    teacher: Tensor
    """(M, D), without."""
    weights: Tensor
    """(M,): the share of each in the whole batch; a text that is used twice counts twice. Over the batch they sum to
    1."""


def alignment_loss(states: Aligned, config: TeacherConfig) -> Tensor:
    """Return what these states add to the mean distance of a batch's states from the teacher's."""
    with torch.autocast(states.student.device.type, enabled=False):
        student, teacher = at_least_float32(states.student), at_least_float32(states.teacher)
        return (states.weights * divergences(student, teacher, config.mse_w, config.temperature)).sum()


def divergences(states: Tensor, targets: Tensor, mse_w: float, temperature: float) -> Tensor:
    """Return how far states (M, D) are from targets (M, D), row by row, (M,).

    mse_w * mean((states - targets)^2) + temperature * KL(softmax(targets / temperature) || softmax(states /
    temperature)), the softmax over dimensions; a term with factor 0 is left out.
    """
    distance = states.new_zeros(len(states))
    if mse_w:
        distance = distance + mse_w * (states - targets).square().mean(-1)
    if temperature:
        wanted = torch.log_softmax(targets / temperature, dim=-1)
        found = torch.log_softmax(states / temperature, dim=-1)
        distance = distance + temperature * (wanted.exp() * (wanted - found)).sum(-1)
    return distance
