"""Step times and peak memory, measured in the same way for every system. Runs in the peers' environments too."""

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
    """Return the peak memory in bytes: of the GPU if there is one, otherwise of this process."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak_resident()


def peak_resident() -> int:
    """Return this process's peak resident memory in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # only this program's; getrusage also counts what the process used before it ran this program
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class StepClock:
    """Records the time after each step of any optimiser, and the time in calls that do not count."""

    def __init__(self) -> None:
        """Register the hook that records steps."""
        self._stamps: list[tuple[float, float, float]] = []
        self._outside = 0.0
        self._peak = 0
        register_optimizer_step_post_hook(self._stamp)

    def _stamp(self, *_: Any) -> None:
        synchronize()
        self._stamps.append((time.perf_counter(), self._outside, time.process_time()))
        self._peak = peak_memory()  # up to here, because saving comes later and is not training

    def without(self, call: Callable[..., Result]) -> Callable[..., Result]:
        """Return the call, wrapped so that its time does not count towards the steps."""

        @wraps(call)
        def timed(*arguments: Any, **options: Any) -> Result:
            start = time.perf_counter()
            try:
                return call(*arguments, **options)
            finally:
                self._outside += time.perf_counter() - start

        return timed

    def answer(self, warmup: int) -> dict[str, Any]:
        """Return the times of the steps after the first `warmup`, and the peak memory.

        `seconds` is the time of a step, `outside` the time excluded from it, and `cpu` the CPU time of all the
        process's threads, including what was excluded.
        """
        steps = between(self._stamps, warmup)
        return {
            "seconds": [whole - outside for whole, outside, _ in steps],
            "outside": [outside for _, outside, _ in steps],
            "cpu": [cpu for _, _, cpu in steps],
            "memory": self._peak,
        }
