"""What a worker is told and how it is started. Read in the peers' environments too, so only the standard library."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]
OWN, ANGLE_EMB, SBERT, CACHED, BARE = (
    "angle-hydra",
    "angle_emb",
    "sentence-transformers",
    "sentence-transformers, cached",
    "bare forward-backward",
)
PEERS = (ANGLE_EMB, SBERT)
#: What this project does beyond the plainest loop, each of which can be taken out.
TECHNIQUES = (
    "packed rows",
    "attention in blocks",
    "products by oneDNN",
    "dropout from 16 bits",
    "each distinct text once",
    "freed memory kept",
    "batches made ahead",
    "fused AdamW",
)
SEED, LEARNING_RATE, LORA_DROPOUT = 42, 5e-5, 0.1


@dataclass(frozen=True)
class Job:
    """One system's share of a round, in a process of its own."""

    system: str
    task: str
    """train: seconds of steps; loss: the first batch's, with dropout off; encode: seconds of all texts."""
    model: str
    """Folder of a checkpoint."""
    rows: str
    """A .jsonl file in the columns of `format`; for encode one of {"text"}."""
    scratch: str
    """A new folder to write to."""
    format: str = "A"
    batch_size: int = 32
    precision: str = "float32"
    """float32, or bf16 for autocast."""
    warmup: int = 1
    """First steps that do not count; at least one, for a step's time begins where the one before ended."""
    max_length: int = 128
    objective: str = OWN
    """Whose terms this project's loss has: its own, or those a peer computes."""
    decoder: bool = False
    lora: int | None = None
    """Rank of adapters on all linear layers."""
    bits: int | None = None
    dtype: str = "float32"
    both_directions: bool = False
    """Whether every layer of a decoder attends in both directions (this project alone can)."""
    without: tuple[str, ...] = ()
    """Techniques of this project that are taken out."""

    def read(self) -> list[dict[str, Any]]:
        """Return its rows."""
        return [json.loads(line) for line in Path(self.rows).read_text(encoding="utf-8").splitlines()]


class WorkerError(RuntimeError):
    """A worker that ended without an answer."""


def start(job: Job, python: str = sys.executable) -> dict[str, Any]:
    """Run a job with an interpreter and return its answer.

    Raises:
        WorkerError: it gave none; the message has the end of what it wrote.

    """
    done = subprocess.run(
        [python, "-m", "benchmarks.throughput.worker", json.dumps(asdict(job))],
        cwd=REPO,
        env=os.environ | {"PYTHONPATH": str(REPO), "TOKENIZERS_PARALLELISM": "false", "WANDB_MODE": "disabled"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise WorkerError(f"{job.system}, {job.task}, in {python} failed:\n{done.stderr[-3000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer
