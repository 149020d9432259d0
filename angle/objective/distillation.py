"""Distillation: pull a student's states towards those of a frozen teacher. Logged as `loss/alignment`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from angle.config import TeacherConfig
from angle.objective.dtypes import at_least_float32


@dataclass(frozen=True)
class StudentTeacherStates:
    """A student's states and those of its teacher: of distinct texts, or of their tokens."""

    student: Tensor
    """(M, D), with gradient."""
    teacher: Tensor
    """(M, D), without gradient."""
    sample_weights: Tensor
    """(M,): the weight of each state in the mean over the global batch, in which a text that is used twice counts
    twice; they sum to 1 over the global batch."""


def distillation_loss(states: StudentTeacherStates, config: TeacherConfig) -> Tensor:
    """Return these states' part of the mean distance between the global batch's states and the teacher's."""
    with torch.autocast(states.student.device.type, enabled=False):
        student, teacher = at_least_float32(states.student), at_least_float32(states.teacher)
        return (states.sample_weights * distances(student, teacher, config.mse_w, config.temperature)).sum()


def distances(states: Tensor, targets: Tensor, mse_w: float, temperature: float) -> Tensor:
    """Return the distance (M,) of each row of states (M, D) from the same row of targets (M, D).

    mse_w * mean((states - targets)^2) + temperature * KL(softmax(targets / temperature) || softmax(states /
    temperature)), with mean and softmax over dimensions; a term with factor 0 is left out.
    """
    distance = states.new_zeros(len(states))
    if mse_w:
        distance = distance + mse_w * (states - targets).square().mean(-1)
    if temperature:
        target_log_probs = torch.log_softmax(targets / temperature, dim=-1)
        log_probs = torch.log_softmax(states / temperature, dim=-1)
        distance = distance + temperature * (target_log_probs.exp() * (target_log_probs - log_probs)).sum(-1)
    return distance
