"""The launcher that started this process, and maybe others beside it."""

from __future__ import annotations

import os


def launched() -> int:
    """Return how many processes there are; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def launch_words(processes: int) -> str:
    """Return the words that start a script in so many processes."""
    return "python" if processes == 1 else f"accelerate launch --multi_gpu --num_processes {processes}"
