"""Distillation: the values of angle_emb, text by text and token by token, and their gradient."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from conftest import REPO
from torch import Tensor

from angle.config import EseConfig, LossConfig, TeacherConfig
from angle.modeling.pooling import pool
from angle.objective.combined import CombinedLoss
from angle.objective.distillation import StudentTeacherStates, distances, distillation_loss
from angle.objective.espresso import EspressoLoss
from angle.objective.objective import Objective
from angle.structures import FORMATS, BatchStructure

GOLDENS = np.load(REPO / "tests" / "fixtures" / "espresso.npz")
DISTANCES = sorted({name.rsplit("/", 1)[0] for name in GOLDENS if re.match(r"distill_.*/loss", name)})


def teacher(**settings: float) -> TeacherConfig:
    return TeacherConfig(enabled=True, name_or_path="x", **settings)


@pytest.mark.parametrize("case", DISTANCES)
def test_distances_of_angle_emb(case):
    match = re.fullmatch(r"(\w+)/mse=(.*)_T=(.*)", case)
    assert match is not None
    states = torch.from_numpy(GOLDENS[f"{match[1]}/inputs"]).requires_grad_()
    loss = distances(states, torch.from_numpy(GOLDENS[f"{match[1]}/targets"]), float(match[2]), float(match[3])).mean()
    assert loss.item() == pytest.approx(float(GOLDENS[f"{case}/loss"]), rel=1e-10)
    if loss.requires_grad:
        loss.backward()
        np.testing.assert_allclose(states.grad, GOLDENS[f"{case}/grad"], rtol=1e-8, atol=1e-12)


def equal_weights(number: int) -> Tensor:
    """Return equal weights."""
    return torch.full((number,), 1 / number, dtype=torch.float64)


def golden_objective(case: str, trainer: str, *, with_distillation: bool = True) -> tuple[Tensor, Tensor]:
    """Return the objective's value for a golden case, and the hidden states (L + 1, N, T, D) it depends on."""
    hidden = torch.from_numpy(GOLDENS[f"{case}/hidden"]).requires_grad_()
    mask = torch.from_numpy(GOLDENS[f"{case}/mask"])
    target = torch.from_numpy(GOLDENS[f"{case}/teacher_last"])
    lengths, (_, pooling, teacher_pooling) = mask.sum(1).numpy(), case.split("_")
    index = torch.arange(len(mask)).view(-1, 2)
    structure = BatchStructure(FORMATS["A"], index, index, torch.from_numpy(GOLDENS[f"{case}/labels"])[::2, 0])
    loss = CombinedLoss(LossConfig(1.0, 20.0, 1.0), FORMATS["A"], 16, duplicates="keep")
    embeddings = pool(hidden[-1][mask.bool()], lengths, pooling)
    if teacher_pooling == "all":
        # The reference sums over a text's positions, pads among them, where we take the mean over its tokens.
        states_pair = StudentTeacherStates(hidden[-1].flatten(0, 1), target.flatten(0, 1), equal_weights(mask.numel()))
        objective = Objective([loss], teacher(weight=mask.shape[1]))
    else:
        states_pair = StudentTeacherStates(
            embeddings, pool(target[mask.bool()], lengths, teacher_pooling), equal_weights(len(mask))
        )
        objective = Objective([loss], teacher())
    distillation = objective.teacher.weight * objective.distillation(states_pair) if with_distillation else 0.0
    if trainer == "AngleESETrainer":
        espresso = EspressoLoss(loss, EseConfig(True, 8, pca=False, compat=True), len(hidden) - 1, 16)
        objective = Objective([espresso], objective.teacher)
        states = hidden[list(espresso.depths)].permute(1, 2, 0, 3)[mask.bool()]
        return objective(pool(states, lengths, pooling), structure).total + distillation, hidden
    return objective(embeddings, structure).total + distillation, hidden


@pytest.mark.parametrize("case", ["align_cls_cls", "align_avg_avg", "align_cls_all"])
def test_loss_of_angle_emb_with_a_teacher(case):
    total, hidden = golden_objective(case, "AngleTrainer")
    total.backward()
    assert total.item() == pytest.approx(float(GOLDENS[f"{case}/AngleTrainer/loss"]), rel=1e-10)
    np.testing.assert_allclose(hidden.grad, GOLDENS[f"{case}/AngleTrainer/grad"], rtol=1e-8, atol=1e-10)


def test_espresso_has_the_value_of_angle_emb_and_the_teachers_gradient():
    case = "align_cls_cls"
    total, hidden = golden_objective(case, "AngleESETrainer")
    assert total.item() == pytest.approx(float(GOLDENS[f"{case}/AngleESETrainer/loss"]), rel=1e-10)
    gradients = []
    for with_distillation in (True, False):
        total, hidden = golden_objective(case, "AngleESETrainer", with_distillation=with_distillation)
        gradients.append(torch.autograd.grad(total, hidden)[0])
    assert not torch.equal(gradients[0][-1], gradients[1][-1])
    assert torch.equal(gradients[0][:-1], gradients[1][:-1])


def test_the_loss_of_a_batch_is_the_sum_over_its_parts():
    generator = torch.Generator().manual_seed(0)
    states, targets = torch.randn(2, 3, 8, generator=generator, dtype=torch.float64)
    weights, config = torch.tensor([0.25, 0.5, 0.25]), teacher(mse_w=0.5)
    total = distillation_loss(StudentTeacherStates(states, targets, weights), config)
    order = torch.tensor([0, 1, 1, 2])  # the second text is used twice
    mean = distances(states[order], targets[order], 0.5, 1.0).mean()
    assert total.item() == pytest.approx(mean.item(), rel=1e-12)
    parts = [
        distillation_loss(StudentTeacherStates(states[part], targets[part], weights[part]), config)
        for part in ([0], [1, 2])
    ]
    assert sum(parts).item() == pytest.approx(total.item(), rel=1e-12)


def test_equal_states_have_no_loss():
    states = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    assert distillation_loss(
        StudentTeacherStates(states, states, torch.ones(3) / 3), teacher(mse_w=1.0)
    ).item() == pytest.approx(0, abs=1e-6)
