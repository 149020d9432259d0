"""Step times and peak memory, taken in the same way whoever trains. Runs in the peers' environments too."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from benchmarks.throughput.figures import between

Result = TypeVar("Result")


def synchronize() -> None:
    """Wait for the device, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_memory() -> int:
    """Return bytes: the device's where there is one, else this process's."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak_resident()


def peak_resident() -> int:
    """Return the bytes of this process's resident memory at its highest."""
    status = Path("/proc/self/status")
    if status.exists():  # of this program alone; getrusage also counts what the process was before it became it
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class StepClock:
    """Notes the time after each step of any optimiser, without what passed in calls that do not count."""

    def __init__(self) -> None:
        """Start to listen."""
        self._stamps: list[tuple[float, float, float]] = []
        self._outside = 0.0
        self._peak = 0
        register_optimizer_step_post_hook(self._stamp)

    def _stamp(self, *_: Any) -> None:
        synchronize()
        self._stamps.append((time.perf_counter(), self._outside, time.process_time()))
        self._peak = peak_memory()  # saving, which comes later, is not training

    def without(self, call: Callable[..., Result]) -> Callable[..., Result]:
        """Return the call, its time taken out of the steps'."""

        @wraps(call)
        def timed(*arguments: Any, **options: Any) -> Result:
            start = time.perf_counter()
            try:
                return call(*arguments, **options)
            finally:
                self._outside += time.perf_counter() - start

        return timed

    def answer(self, warmup: int) -> dict[str, Any]:
        """Return the steps after the first `warmup`, and peak memory.

        `seconds` are a step's, `outside` those that were taken out of them, `cpu` those of all the process's threads,
        with what was taken out.
        """
        steps = between(self._stamps, warmup)
        return {
            "seconds": [whole - outside for whole, outside, _ in steps],
            "outside": [outside for _, outside, _ in steps],
            "cpu": [cpu for _, _, cpu in steps],
            "memory": self._peak,
        }
