"""Alignment: pull a student's states towards those of a frozen teacher."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from angle.config import TeacherConfig
from angle.objective.dtypes import at_least_float32


@dataclass(frozen=True)
class Aligned:
    """States to align: of distinct texts, or of their tokens."""

    student: Tensor
    """(M, D), with gradient."""
    teacher: Tensor
    """(M, D), without gradient."""
    weights: Tensor
    """(M,): the share of each state in the whole batch; a text that is used twice counts twice. They sum to 1 over the
    batch."""


def alignment_loss(states: Aligned, config: TeacherConfig) -> Tensor:
    """Return the contribution of these states to the mean distance between the batch's states and the teacher's."""
    with torch.autocast(states.student.device.type, enabled=False):
        student, teacher = at_least_float32(states.student), at_least_float32(states.teacher)
        return (states.weights * divergences(student, teacher, config.mse_w, config.temperature)).sum()


def divergences(states: Tensor, targets: Tensor, mse_w: float, temperature: float) -> Tensor:
    """Return the distance (M,) of each row of states (M, D) from the same row of targets (M, D).

    mse_w * mean((states - targets)^2) + temperature * KL(softmax(targets / temperature) || softmax(states /
    temperature)), with the softmax over dimensions; a term with factor 0 is left out.
    """
    distance = states.new_zeros(len(states))
    if mse_w:
        distance = distance + mse_w * (states - targets).square().mean(-1)
    if temperature:
        wanted = torch.log_softmax(targets / temperature, dim=-1)
        found = torch.log_softmax(states / temperature, dim=-1)
        distance = distance + temperature * (wanted.exp() * (wanted - found)).sum(-1)
    return distance
