"""Processes that train as one: what the main process decides, the others are told."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from conftest import free_port
from torch import distributed as dist
from torch.multiprocessing.spawn import spawn

from angle.config import TrainConfig
from angle.config.build import build_config
from angle.training.loop import fit
from angle.training.run_folder import RunFolder


def _resume_by_main_process(rank: int, folder: str, port: int) -> None:
    """Resume a run on each of two processes, of which only the main one can choose a checkpoint."""
    launcher = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in launcher.items()} | {"ACCELERATE_USE_CPU": "true"}
    train = {"batch_size": 8, "max_steps": 2, "save_steps": 1, "logging_steps": 1, "output_dir": f"{folder}/run"}
    config = build_config({"data": {"train": {"name_or_path": "sample"}}, "train": train}, TrainConfig)
    run = RunFolder(fit(config).folder)
    if rank == 0:
        run.update(finished=False)
        (run.checkpoints()[0] / "model.safetensors").write_bytes(b"damaged")
    else:
        RunFolder.newest_checkpoint = None
    dist.barrier()
    assert not fit(config).already_finished


@pytest.mark.slow
def test_the_main_process_chooses_the_checkpoint_for_all(tmp_path: Path) -> None:
    spawn(_resume_by_main_process, (str(tmp_path), free_port()), nprocs=2)
    assert "is damaged, going back to the one before" in (tmp_path / "run" / "train.log").read_text()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2]
