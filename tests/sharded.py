"""One of the processes that test_sharded.py starts: trains job after job, and writes down what it held of each."""

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


class Exchanges(TorchDispatchMode):
    """Counts how often gradients are exchanged while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += "reduce_scatter" in str(func)
        return func(*args, **(kwargs or {}))


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Train with weights shared out or whole, up to a step or to the end; return what this process held at first."""
    held: dict[str, Any] = {}
    prepare, checkpoint = loop._prepare, loop._checkpoint

    def look(*arguments: object) -> loop.Run:
        made = prepare(*arguments)
        weights = list(made.trainable.parameters())
        parts = [weight for weight in weights if isinstance(weight, DTensor)]
        held["all"], held["parts"] = sum(w.numel() for w in weights), sum(p.to_local().numel() for p in parts)
        held["whole"] = sum(weight.numel() for weight in weights) - sum(part.numel() for part in parts)
        held["modules"] = sorted(type(m).__name__ for m in made.trainable.modules() if isinstance(m, FSDPModule))
        return made

    def stop(run: loop.Run) -> None:
        checkpoint(run)
        if run.progress.step == job["until"]:
            raise _StoppedError

    os.environ["ACCELERATE_USE_FSDP"] = str(job["shared"]).lower()
    with Exchanges() as exchanges, patch.object(loop, "_prepare", look), patch.object(loop, "_checkpoint", stop):
        try:
            loop.fit(build_config(job["settings"], TrainConfig))
        except _StoppedError:
            pass
        else:
            assert job["until"] is None
    return held | {"exchanges": exchanges.number}


if __name__ == "__main__":
    place = Path(sys.argv[1])
    found = [run(job) for job in json.loads((place / "jobs.json").read_text())]
    (place / f"held-{os.environ['RANK']}.json").write_text(json.dumps(found))
