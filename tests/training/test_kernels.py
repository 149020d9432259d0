"""The kernels of a run: decided once, by one process, written down, and taken again when it is resumed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from accelerate import PartialState
from conftest import run_ranks
from torch import distributed as dist
from torch import nn

from angle.config import TrainConfig
from angle.config.build import build_config
from angle.kernels import KERNEL_NAMES
from angle.kernels.linear import CpuLinear
from angle.kernels.registry import INSTALLED
from angle.modeling import kernel_choice
from angle.modeling.kernel_choice import kernels_to_skip_from_main_process
from angle.tracking.tracker import Tracker
from angle.training import setup
from angle.training.accelerator import start_accelerator
from angle.training.loop import fit
from angle.training.run_folder import RunFolder

NONE_BUT_LINEAR = [name for name in KERNEL_NAMES if name != "linear"]


class StoppedError(Exception):
    """Stands for whatever ends a run."""


def settings(folder: Path, teacher: str | None = None, **train: Any) -> TrainConfig:
    return build_config(
        {
            "model": {"name_or_path": "tiny", "max_length": 16},
            "data": {"train": {"name_or_path": "sample"}},
            "teacher": {} if teacher is None else {"enabled": True, "name_or_path": teacher},
            "train": {"max_steps": 3, "save_steps": 1, "batch_size": 4, "output_dir": str(folder)} | train,
        },
        TrainConfig,
    )


def fake_measured_gain(monkeypatch: pytest.MonkeyPatch, gain: float) -> None:
    """Let every measurement come out the same."""
    monkeypatch.setattr(
        kernel_choice, "measured_gain", lambda kernel, model: gain if kernel.benchmark is not None else None
    )


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_resumed_run_uses_the_kernels_it_was_started_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Although the machine, measured again, would choose others."""
    fake_measured_gain(monkeypatch, 0.9)
    straight = fit(settings(tmp_path / "straight", logging_steps=1)).folder
    steps: list[int] = []

    def stop(_: Tracker) -> None:
        steps.append(len(steps))
        if len(steps) == 2:
            raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr(Tracker, "advance", stop)
        with pytest.raises(StoppedError):
            fit(settings(tmp_path / "resumed", logging_steps=1))
    fake_measured_gain(monkeypatch, 1.5)
    resumed = fit(settings(tmp_path / "resumed", logging_steps=1)).folder
    for folder in (straight, resumed):
        record = json.loads((folder / "run.json").read_text())
        assert record["kernels"]["linear"] == "slower here: 0.90"
        assert record["kernels"]["dropout"] == INSTALLED
        assert RunFolder(folder).resolved_config().model.kernels == NONE_BUT_LINEAR
        assert RunFolder(folder).requested_config().model.kernels is None
        assert "kernels packing, blocks, dropout" in (folder / "train.log").read_text()
    assert "linear slower here: 0.90" in (straight / "train.log").read_text()
    assert losses(resumed) == losses(straight)
    weights = [(folder / "final" / "model.safetensors").read_bytes() for folder in (straight, resumed)]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("gain", [0.9, 1.5])
def test_teacher_uses_the_kernels_of_the_run(
    folder_of: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gain: float
) -> None:
    fake_measured_gain(monkeypatch, gain)
    config = settings(tmp_path, teacher="self")
    components = setup.build(config, start_accelerator(config.train.mixed_precision))
    assert components.teacher is not None
    assert components.teacher.encoder is not None
    assert components.teacher.encoder is not components.encoder
    for encoder in (components.encoder, components.teacher.encoder):
        assert any(isinstance(module, CpuLinear) for module in encoder.modules()) == (gain > 1)


def test_packing_off_skips_the_packing_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_measured_gain(monkeypatch, 1.5)
    config = settings(tmp_path, packing="off")
    components = setup.build(config, start_accelerator(config.train.mixed_precision))
    status = components.encoder.kernel_status()
    assert (status["packing"], status["blocks"]) == ("train.packing=off", "no packed rows")
    assert components.config.model.kernels == [name for name in KERNEL_NAMES if name != "packing"]


@pytest.mark.slow
def test_main_process_chooses_kernels_for_all(tmp_path: Path) -> None:
    run_ranks(choose_as, tmp_path)
    choices = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert choices == [{"linear": "slower here: 0.50"}] * 2


def choose_as() -> None:
    """Choose as one of two processes, each of which measures something else."""
    rank = int(os.environ["RANK"])
    kernel_choice.measured_gain = lambda kernel, _: (0.5, 2.0)[rank] if kernel.benchmark else None
    PartialState(cpu=True)
    chosen = kernels_to_skip_from_main_process(nn.Sequential(nn.Linear(2, 2)), None)
    Path(f"{rank}.json").write_text(json.dumps(chosen))
    dist.destroy_process_group()
