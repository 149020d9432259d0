"""The processes of a run, and how they communicate."""

from __future__ import annotations

import gc
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

# DDP imports this. Its functions hold on to the process group that exists then, so it must be before there is one.
import torch.distributed.nn.functional
from torch import Tensor

from angle.distributed.environment import launch_command, world_size
from angle.errors import ConfigError

if TYPE_CHECKING:
    from accelerate import PartialState


#: How long processes wait for each other: one may first have to download a model, save or upload.
TIMEOUT = timedelta(hours=6)


def best_device() -> torch.device:
    """Return the device that a single process works on."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def has_gpu() -> bool:
    """Return whether there is a GPU to train on."""
    return best_device().type != "cpu"


def init_distributed(script: str) -> PartialState:
    """Return this process's rank and device once all processes of the launcher have joined.

    Raises:
        ConfigError: as `check_world_size`.

    """
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    on_cpu = not has_gpu() or parse_flag_from_env("ACCELERATE_USE_CPU")  # set by accelerate launch --cpu
    state = PartialState(cpu=on_cpu, timeout=TIMEOUT)
    check_world_size(state.num_processes, script)
    return state


def shutdown_distributed() -> None:
    """Close the connections to the other processes, whose threads could otherwise outlive the interpreter and abort."""
    if dist.is_initialized():
        gc.collect()  # what is wrapped for several processes holds them open
        dist.destroy_process_group()


def check_world_size(processes: int, script: str) -> None:
    """Check that all processes of the launcher found each other; otherwise each would work on its own.

    Raises:
        ConfigError: some did not.

    """
    wanted = world_size()
    if processes != wanted:
        raise ConfigError(
            f"The launcher announced {wanted} processes, but {processes} found each other; start with "
            f"{launch_command(wanted)} {script} ..."
        )


def all_gather(value: Tensor, processes: int) -> Tensor:
    """Gather the rows (W M, ...) of all processes in rank order, without gradient; all have equally many."""
    if processes == 1:
        return value
    together = value.new_empty(processes * len(value), *value.shape[1:])
    dist.all_gather(list(together.chunk(processes)), value.contiguous())
    return together


def all_reduce_sum(value: Tensor, processes: int) -> Tensor:
    """Return the sum of a value over all processes."""
    if processes > 1:
        dist.all_reduce(value)
    return value


def all_reduce_min(number: int, processes: int) -> int:
    """Return the smallest number across all processes."""
    numbers: list[int] = [number] * processes
    if processes > 1:
        dist.all_gather_object(numbers, number)
    return min(numbers)
