"""One of the processes that test_sharded.py starts: trains job after job, and records what it held of each."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from angle.config import TrainConfig
from angle.config.build import build_config
from angle.training import loop


class _StoppedError(Exception):
    """The run was stopped on purpose."""


class ReduceScatters(TorchDispatchMode):
    """Counts how often gradients are exchanged while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += "reduce_scatter" in str(func)
        return func(*args, **(kwargs or {}))


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Train with weights sharded or not, up to a step or to the end; return what this process held at first."""
    held: dict[str, Any] = {}
    prepare, checkpoint = loop._prepare, loop._checkpoint

    def prepare_and_count(*arguments: object) -> loop.Run:
        run = prepare(*arguments)
        weights = list(run.trainable.parameters())
        sharded = [weight for weight in weights if isinstance(weight, DTensor)]
        held["all"] = sum(weight.numel() for weight in weights)
        held["sharded"] = sum(weight.to_local().numel() for weight in sharded)
        held["replicated"] = held["all"] - sum(weight.numel() for weight in sharded)
        held["modules"] = sorted(type(m).__name__ for m in run.trainable.modules() if isinstance(m, FSDPModule))
        return run

    def checkpoint_and_stop(run: loop.Run) -> None:
        checkpoint(run)
        if run.progress.step == job["stop_at"]:
            raise _StoppedError

    os.environ["ACCELERATE_USE_FSDP"] = str(job["sharded"]).lower()
    with (
        ReduceScatters() as reduce_scatters,
        patch.object(loop, "_prepare", prepare_and_count),
        patch.object(loop, "_checkpoint", checkpoint_and_stop),
    ):
        try:
            loop.fit(build_config(job["settings"], TrainConfig))
        except _StoppedError:
            pass
        else:
            assert job["stop_at"] is None
    return held | {"exchanges": reduce_scatters.count}


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    folder = Path(sys.argv[1])
    held_by_job = [run(job) for job in json.loads((folder / "jobs.json").read_text())]
    (folder / f"held-{os.environ['RANK']}.json").write_text(json.dumps(held_by_job))
