"""The launcher that started this process, and possibly others."""

from __future__ import annotations

import os


def launched() -> int:
    """Return the number of processes; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def launch_words(processes: int) -> str:
    """Return the command that launches a script in this many processes."""
    return "python" if processes == 1 else f"accelerate launch --multi_gpu --num_processes {processes}"
