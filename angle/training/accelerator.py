"""The accelerator: this process's device and precision, and its connection to the other processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from angle.distributed.environment import launch_command
from angle.distributed.process_group import TIMEOUT, check_world_size, explained_environment, has_gpu
from angle.errors import ConfigError
from angle.training.sharding import enable_fsdp_on_cpu, sharding_plugin

if TYPE_CHECKING:
    from accelerate import Accelerator


def start_accelerator(mixed_precision: str) -> Accelerator:
    """Return the accelerator for this process, with sharded weights if the launcher requests them.

    Args:
        mixed_precision: no, bf16 or fp16.

    Raises:
        ConfigError: a precision that the device lacks, a kind of sharding other than ours, variables that accelerate
            cannot read, or a process group whose size is not WORLD_SIZE.

    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

    plugin = sharding_plugin()
    # The second job of a sweep may use another precision, and shards its weights anew.
    AcceleratorState._reset_state(reset_partial_state=True)
    on_cpu = not has_gpu()
    if on_cpu and mixed_precision == "fp16":
        raise ConfigError(
            "train.mixed_precision=fp16 needs a GPU, and none is here: type train.mixed_precision=bf16 or leave it out."
        )
    with explained_environment():
        accelerator = Accelerator(
            cpu=on_cpu,
            mixed_precision=mixed_precision,
            fsdp_plugin=plugin,
            kwargs_handlers=[
                InitProcessGroupKwargs(timeout=TIMEOUT),
                DistributedDataParallelKwargs(gradient_as_bucket_view=True),  # one copy of the gradients, not two
            ],
        )
    if plugin is not None and on_cpu:
        enable_fsdp_on_cpu(accelerator, plugin)
    check_world_size(accelerator.num_processes, "train.py")
    return accelerator


def check_resumed_processes(started_with: int, processes: int) -> None:
    """Raise ConfigError if a run would resume with another number of processes: its batches would differ."""
    if processes != started_with:
        raise ConfigError(
            f"The run was started with {started_with} process{'es' if started_with > 1 else ''} and would see other "
            f"batches with {processes}: go on with {launch_command(started_with)} train.py ..."
        )
