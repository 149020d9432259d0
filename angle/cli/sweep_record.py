"""sweep.json and sweep.csv: what the jobs of a sweep have found, written as each of them ends."""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

from angle.config import RUN_FILE
from angle.errors import ConfigError
from angle.files import make_folder, try_lock, write_durably

SWEEP_FILE, TABLE_FILE = "sweep.json", "sweep.csv"
#: Jobs that differ in this setting alone are one setting, tried several times.
SEED = "train.seed"


@dataclass
class JobResult:
    """The outcome of a job: failed, until its task has returned."""

    settings: dict[str, str]
    """The settings in which the jobs differ, as they were typed."""
    folder: str
    score: float | None = None
    """The score by which jobs are compared, higher is better; None if nothing was measured."""
    best_metric: str | None = None
    """`train.best_metric`: what the score measures; None for the default."""
    error: str | None = "did not end"
    """The first line of what it failed with; None if it did not fail."""
    trained: bool = False
    """Whether a model was trained, which validation data would have given a score."""
    seconds: float = 0.0
    """How long it took."""

    @property
    def metric(self) -> str | None:
        """The name of what the score measures; None without a score."""
        from angle.evaluation.run_evaluators import metric_named

        return None if self.score is None else metric_named(self.best_metric).name

    @property
    def overrides(self) -> str:
        """The part of the command line in which the jobs differ."""
        return " ".join(f"{name}={value}" for name, value in self.settings.items())


@dataclass
class SweepRecord:
    """The record of a sweep in its folder; jobs of an earlier command with the same folder stay in it."""

    folder: Path
    entries: dict[str, dict[str, Any]] = field(default_factory=dict, init=False)
    """What is known of each job, by its folder."""

    def add(self, job: JobResult) -> None:
        """Write down the outcome of a job, in place of an earlier one of the same job.

        Raises:
            ConfigError: the file has been changed by something else.

        """
        make_folder(self.folder)
        with self._locked():
            self._read()
            known = self.entries.get(os.path.abspath(job.folder), {})
            was_finished = job.error is None and known.get("status") == "finished"  # so this job only found it
            self.entries[os.path.abspath(job.folder)] = {
                "settings": job.settings,
                "folder": job.folder,
                "status": "finished" if job.error is None else "failed",
                "error": job.error,
                "metric": job.metric,
                "score": job.score,
                "seconds": known["seconds"] if was_finished else round(job.seconds, 1),
                "result": _result(Path(job.folder)),
            }
            jobs = list(self.entries.values())
            write_durably(self.folder / SWEEP_FILE, json.dumps({"jobs": jobs}, indent=2) + "\n")
            write_durably(self.folder / TABLE_FILE, _table(jobs))

    def _read(self) -> None:
        path = self.folder / SWEEP_FILE
        if not path.exists():
            return
        try:
            jobs = json.loads(path.read_text("utf-8"))["jobs"]
            self.entries = {os.path.abspath(job["folder"]): job for job in jobs}
        except (ValueError, KeyError, TypeError):
            raise ConfigError(
                f"{path} is not as a sweep writes it: move it away, or give another hydra.sweep.dir."
            ) from None

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other processes out, whose jobs may end at the same time."""
        with (self.folder / f".{SWEEP_FILE}.lock").open("w") as file:
            while not try_lock(file):
                time.sleep(0.05)
            yield


def _result(folder: Path) -> dict[str, Any] | None:
    """Return what a run's record says of its scores; None if there is none, as of an evaluation or a failed job."""
    try:
        result: dict[str, Any] | None = json.loads((folder / RUN_FILE).read_text("utf-8")).get("result")
    except (OSError, ValueError, AttributeError):
        return None
    return result


def _table(jobs: list[dict[str, Any]]) -> str:
    """Return the jobs as a table, a row each."""
    settings = list(dict.fromkeys(name for job in jobs for name in job["settings"]))
    scores = [
        name
        for name in dict.fromkeys(name for job in jobs for name in (job["result"] or ()))
        if any(isinstance((job["result"] or {}).get(name), int | float) for job in jobs)
    ]
    common = ("folder", "status", "metric", "score", "seconds", "error")
    text = StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow([*settings, *common, *scores])
    for job in jobs:
        result = job["result"] or {}
        writer.writerow(
            [
                *(job["settings"].get(name, "") for name in settings),
                *(job[name] for name in common),
                *(result.get(name, "") for name in scores),
            ]
        )
    return text.getvalue()
