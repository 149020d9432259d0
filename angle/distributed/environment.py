"""The launcher that started this process, and possibly others."""

from __future__ import annotations

import os
import shlex
import sys
import time
from pathlib import Path

#: The scripts of this project, which lie side by side.
SCRIPTS = ("train.py", "evaluate.py", "convert.py")


def world_size() -> int:
    """Return the number of processes; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Return whether this is the one process of the launch that prints and writes."""
    return int(os.environ.get("RANK", "0")) == 0


def is_local_main_process() -> bool:
    """Return whether this is the first process of the launch on this machine."""
    return int(os.environ.get("LOCAL_RANK", "0")) == 0


def is_multi_node() -> bool:
    """Return whether the processes run on several machines."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world_size())) < world_size()


def launch_command(processes: int) -> str:
    """Return the command that launches a script in this many processes."""
    return "python" if processes == 1 else f"accelerate launch --multi_gpu --num_processes {processes}"


def script_command(script: str) -> str:
    """Return how to type a script's name here: where the running one lies, or alone if that is another program."""
    running = Path(sys.argv[0])
    return shlex.quote(str(running.with_name(script))) if running.name in SCRIPTS else script


def launch_start_time() -> float:
    """Return the time of the launch in seconds; with several processes, the time at which their launcher started."""
    if world_size() > 1:
        import psutil

        return float(psutil.Process(os.getppid()).create_time())
    return time.time()


def launch_time() -> str:
    """Return the <date>/<time> of the launch, to the millisecond: the same for all processes of one launcher."""
    started = launch_start_time()
    return time.strftime("%Y-%m-%d/%H-%M-%S", time.localtime(started)) + f"-{int(started % 1 * 1000):03d}"


def print_once(text: object) -> None:
    """Print on the main process only."""
    if is_main_process():
        print(text, flush=True)
