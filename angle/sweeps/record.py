"""sweep.json and sweep.csv: what the jobs of a sweep have found, written as each of them ends."""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

from angle.config import RUN_FILE, SWEEP_FILE
from angle.errors import ConfigError
from angle.files import make_folder, try_lock, write_durably
from angle.sweeps.settings import as_typed

TABLE_FILE = "sweep.csv"
#: Beside them, what a search has tried; `optuna-dashboard` shows it.
STUDY_FILE = "optuna.journal"
#: Why a job has failed that has not said so, and one that a signal has ended.
DID_NOT_END, INTERRUPTED = "did not end", "interrupted"
#: What the record says of a job that has begun, and of one that has ended well, or early.
RUNNING, FINISHED, PRUNED = "running", "finished", "pruned"


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
    error: str | None = DID_NOT_END
    """The first line of what it failed with; None if it did not fail."""
    pruned: bool = False
    """Whether a search has stopped it early, so that it has no score to compare."""
    trained: bool = False
    """Whether a model was trained, which validation data would have given a score."""
    seconds: float = 0.0
    """How long it took."""

    @property
    def is_over(self) -> bool:
        """Whether it has said how it ended."""
        return self.error != DID_NOT_END

    @property
    def metric(self) -> str | None:
        """The name of what the score measures; None without a score, or where it depends on the tasks."""
        from angle.evaluation.run_evaluators import metric_named

        return metric_named(self.best_metric).name if self.score is not None and self.trained else None

    @property
    def status(self) -> str:
        """What has become of it, in a word."""
        if not self.is_over:
            return RUNNING
        if self.error is not None:
            return "failed"
        return PRUNED if self.pruned else FINISHED

    @property
    def overrides(self) -> str:
        """The part of the command line in which the jobs differ."""
        return as_typed(self.settings)


@dataclass
class SweepRecord:
    """The record of a sweep in its folder; jobs of an earlier command with the same folder stay in it."""

    folder: Path
    defaults: dict[str, Any] = field(default_factory=dict)
    """What the settings in which the jobs differ are where no job sets them; None is decided by model and data."""
    entries: dict[str, dict[str, Any]] = field(default_factory=dict, init=False)
    """What is known of each job, by its folder."""

    def add(self, job: JobResult, command: str | None = None) -> None:
        """Write down that a job has begun or how it has ended, in place of an earlier one in the same folder.

        Args:
            job: what is known of it.
            command: an identifier of the command that runs it, for `outcome`.

        Raises:
            ConfigError: the file has been changed by something else.

        """
        make_folder(self.folder)
        with self._locked():
            self._read()
            known, result = self.entries.get(os.path.abspath(job.folder), {}), run_result(Path(job.folder))
            was_finished = known.get("status") in (FINISHED, PRUNED)  # so a job that ends well has only found it
            self.entries[os.path.abspath(job.folder)] = {
                "settings": job.settings,
                "folder": job.folder,
                "status": job.status,
                "error": job.error if job.is_over else None,
                "metric": job.metric,
                "score": job.score,
                "seconds": known["seconds"] if was_finished and job.error is None else round(job.seconds, 1),
                "result": result,
                "command": command,
            }
            if was_finished and result is not None and not job.is_over:
                self.entries[os.path.abspath(job.folder)] = known | {"command": command}
            jobs = list(self.entries.values())
            content = {"defaults": self.defaults, "jobs": jobs}
            write_durably(self.folder / SWEEP_FILE, json.dumps(content, indent=2) + "\n")
            write_durably(self.folder / TABLE_FILE, _table(jobs))

    def outcome(self, settings: dict[str, str], command: str | None = None) -> JobResult | None:
        """Return what a command, or any, has written down of a job with these settings; None if it has not begun."""
        self._read()
        for entry in self.entries.values():
            if entry["settings"] == settings and command in (None, entry["command"]):
                result = JobResult(settings, entry["folder"], entry["score"], entry["metric"])
                result.error = DID_NOT_END if entry["status"] == RUNNING else entry["error"]
                result.pruned = entry["status"] == PRUNED
                result.trained, result.seconds = entry["result"] is not None, entry["seconds"]
                return result
        return None

    def finished(self, folders: Collection[str]) -> list[dict[str, Any]]:
        """Return the entries of the jobs in these folders that have ended well, and not early."""
        self._read()
        absolute = {os.path.abspath(folder) for folder in folders}
        return [entry for folder, entry in self.entries.items() if folder in absolute and entry["status"] == FINISHED]

    def progress(self, command: str) -> tuple[list[float], int]:
        """Return how many seconds each job of a command took that has ended well, and how many run now."""
        self._read()
        jobs = [entry for entry in self.entries.values() if entry["command"] == command]
        seconds = [entry["seconds"] for entry in jobs if entry["status"] == FINISHED]
        return seconds, sum(entry["status"] == RUNNING for entry in jobs)

    def _read(self) -> None:
        path = self.folder / SWEEP_FILE
        if not path.exists():
            return
        try:
            content = json.loads(path.read_text("utf-8"))
            self.entries = {os.path.abspath(job["folder"]): job for job in content["jobs"]}
            self.defaults = content.get("defaults", {}) | self.defaults
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


def run_result(folder: Path) -> dict[str, Any] | None:
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
