"""What a worker is asked, and how it is started. Standard library only, since peers' environments import this too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
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
#: Techniques that are kernels (model.kernels), with the kernels' names.
KERNEL_TECHNIQUES = {
    "packed rows": "packing",
    "attention in blocks": "blocks",
    "products by oneDNN": "linear",
    "dropout from 16 bits": "dropout",
    "adapters as one operation": "lora",
    "norms as one kernel": "rms_norm",
    "freed memory kept": "allocator",
}
#: What this project does beyond the plainest loop; each technique can be disabled.
TECHNIQUES = (
    *KERNEL_TECHNIQUES,
    "each distinct text once",
    "batches made ahead",
    "fused AdamW",
    "absent tokens left out",
)
SEED, LEARNING_RATE, LORA_DROPOUT = 42, 5e-5, 0.1
#: Multipliers of the similarities in all losses, which are the peers' defaults.
TAUS = {"cosine_tau": 20.0, "ibn_tau": 20.0, "angle_tau": 20.0}


@dataclass(frozen=True)
class Job:
    """One system's part of a round, run in a separate process."""

    system: str
    task: str
    """train: time each step; loss: return the first batch's loss, with dropout off; encode: time all texts; fit: train
    on the rows in the order of the file, and save the model; score: return Spearman's correlations of a saved model."""
    model: str
    """Folder of a checkpoint."""
    rows: str
    """A .jsonl file with the columns of `format`; for encode, with the column `text`; for score, none."""
    scratch: str
    """An empty folder to write to."""
    format: str = "A"
    batch_size: int = 32
    steps: int | None = None
    """Steps to train for; the file may have more rows. None for all rows."""
    precision: str = "float32"
    """float32, or bf16 for autocast."""
    warmup: int = 1
    """Initial steps that do not count; at least one, because a step's time begins where the previous one ended."""
    max_length: int = 128
    objective: str = OWN
    """The system whose loss terms this project computes: its own, or a peer's."""
    decoder: bool = False
    lora: int | None = None
    """Rank of adapters on all linear layers."""
    bits: int | None = None
    dtype: str = "float32"
    both_directions: bool = False
    """Whether every layer of a decoder is bidirectional (only this project can)."""
    without: tuple[str, ...] = ()
    """Techniques of this project to disable."""
    kernels: tuple[str, ...] | None = None
    """Kernels of this project to use, less those of `without`; None for all that pay here."""
    learning_rate: float = LEARNING_RATE
    warmup_ratio: float = 0.0
    """The part of all steps in which the learning rate rises to `learning_rate`; then it falls linearly to 0."""
    seed: int = SEED
    options: Mapping[str, Any] = field(default_factory=dict)
    """What else the system is told. This project: `overrides`, words of train.py's command line, instead of
    `objective`; angle_emb: arguments of `AnglE.fit`; sentence-transformers: `loss`, the name of its class, and
    `batch_sampler`. For score: `files`, of format A."""

    def read(self) -> list[dict[str, Any]]:
        """Return the rows of the job's steps."""
        lines = Path(self.rows).read_text(encoding="utf-8").splitlines()
        rows = None if self.steps is None else self.steps * self.batch_size
        return [json.loads(line) for line in lines[:rows]]


class WorkerError(RuntimeError):
    """A worker that ended without an answer."""


def start(job: Job, python: str = sys.executable, threads: int | None = None) -> dict[str, Any]:
    """Run a job with the given interpreter and return its answer.

    Args:
        job: what to run.
        python: the interpreter.
        threads: number of threads ($OMP_NUM_THREADS); None: torch's default.

    Raises:
        WorkerError: the worker failed; the message has the end of its stderr.

    """
    environment = {"PYTHONPATH": str(REPO), "TOKENIZERS_PARALLELISM": "false", "WANDB_MODE": "disabled"}
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    done = subprocess.run(
        [python, "-m", "benchmarks.throughput.worker", json.dumps(asdict(job))],
        cwd=REPO,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise WorkerError(f"{job.system}, {job.task}, in {python} failed:\n{done.stderr[-3000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer
