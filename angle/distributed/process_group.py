"""The process group of a run: how its processes find each other and communicate."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

# DDP imports this. Its functions keep the process group that exists then, so it must be imported before there is one.
import torch.distributed.nn.functional
from torch import Tensor

from angle.distributed.environment import launch_command, world_size
from angle.errors import ConfigError, first_line

if TYPE_CHECKING:
    from accelerate import PartialState


#: How long processes wait for each other: one may have to download a model, save or upload first.
TIMEOUT = timedelta(hours=6)
#: The default group, and a group of the same processes that reduces on the CPU.
_cpu_groups: tuple[dist.ProcessGroup | None, dist.ProcessGroup | None] | None = None


def best_device() -> torch.device:
    """Return the device that a single process works on."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def has_gpu() -> bool:
    """Return whether there is a GPU to train on."""
    return best_device().type != "cpu"


def init_distributed(script: str) -> PartialState:
    """Join the process group of the launcher, and return this process's rank and device.

    Raises:
        ConfigError: as `check_world_size`, or accelerate cannot read its variables.

    """
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    with explained_environment():
        on_cpu = not has_gpu() or parse_flag_from_env("ACCELERATE_USE_CPU")  # set by accelerate launch --cpu
        state = PartialState(cpu=on_cpu, timeout=TIMEOUT)
    check_world_size(state.num_processes, script)
    return state


@contextmanager
def explained_environment() -> Iterator[None]:
    """Turn what accelerate raises when it starts, of variables that it cannot read or follow, into ConfigError."""
    try:
        yield
    except Exception as error:
        raise ConfigError(
            f"accelerate cannot start with the environment that it finds ({first_line(error)}): start with accelerate "
            f"launch, or unset what that sets: WORLD_SIZE, and what begins with ACCELERATE_ or FSDP_."
        ) from error


def shutdown_distributed() -> None:
    """Leave the process group, whose threads could otherwise outlive the interpreter and abort."""
    if dist.is_initialized():
        gc.collect()  # models wrapped for several processes keep it open
        dist.destroy_process_group()


def check_world_size(processes: int, script: str) -> None:
    """Check that all processes of the launcher are in the process group; otherwise each would work on its own.

    Raises:
        ConfigError: some are not.

    """
    expected = world_size()
    if processes != expected:
        raise ConfigError(
            f"WORLD_SIZE is {expected}, but the process group has {processes} rank{'s' if processes > 1 else ''}; "
            f"start with {launch_command(expected)} {script} ..."
        )


def all_gather(value: Tensor, processes: int) -> Tensor:
    """Return the rows of all processes (W M, ...) in rank order, without gradient; each has M rows."""
    if processes == 1:
        return value
    gathered = value.new_empty(processes * len(value), *value.shape[1:])
    dist.all_gather(list(gathered.chunk(processes)), value.contiguous())
    return gathered


def all_reduce_sum(value: Tensor, processes: int) -> Tensor:
    """Return the sum of a value over all processes."""
    if processes > 1:
        dist.all_reduce(value)
    return value


def all_reduce_max(numbers: list[int], processes: int) -> list[int]:
    """Return the largest of each of a few numbers over all processes, on the CPU: no device has to be waited for."""
    if processes == 1:
        return numbers
    reduced = torch.tensor(numbers)
    dist.all_reduce(reduced, dist.ReduceOp.MAX, group=_cpu_group())
    result: list[int] = reduced.tolist()
    return result


def _cpu_group() -> dist.ProcessGroup | None:
    """Return the group of all processes that reduces on the CPU."""
    global _cpu_groups
    default = dist.group.WORLD
    if dist.get_backend() != "nccl":
        return default
    if _cpu_groups is None or _cpu_groups[0] is not default:  # the second job of a sweep may have a new one
        _cpu_groups = default, dist.new_group(backend="gloo", timeout=TIMEOUT)
    return _cpu_groups[1]


def all_reduce_min(number: int, processes: int) -> int:
    """Return the smallest number across all processes."""
    numbers: list[int] = [number] * processes
    if processes > 1:
        dist.all_gather_object(numbers, number)
    return min(numbers)
