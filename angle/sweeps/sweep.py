"""What a sweep's folder holds for a page: its jobs, and the settings that they try, over their seeds."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from angle.config import SWEEP_FILE, TrainConfig
from angle.config.record import read_config
from angle.errors import ConfigError, DataError
from angle.evaluation.evaluator import Metric
from angle.evaluation.predictions import AFTER, Predictions
from angle.evaluation.run_evaluators import metric_named
from angle.sweeps.budget import SOUP_FOLDER, Budget
from angle.sweeps.record import FINISHED, RUNNING, STUDY_FILE, run_result
from angle.sweeps.settings import SEED, Setting, by_setting, is_value, value_as_typed, without_seed
from angle.tracking.metrics_file import read_metrics
from angle.training.resolve import decided_value
from angle.training.result import Result


@dataclass
class Job:
    """A run of a sweep."""

    settings: dict[str, str]
    """The settings in which the jobs differ, as they were typed."""
    folder: Path
    score: float | None
    """Higher is better; None if nothing was measured."""
    error: str | None
    """Why it failed, None if it did not."""
    status: str
    """running, which also is one that was killed, finished, failed or pruned."""
    seconds: float
    metric: str | None
    """The name of what the score measures."""
    result: dict[str, Any]
    """The scores that the run ends with."""
    predictions: Predictions | None = None

    @property
    def seed(self) -> str:
        """The seed, as it was typed; "" if the jobs have the same."""
        return self.settings.get(SEED, "")

    @property
    def others(self) -> dict[str, str]:
        """The settings without the seed."""
        return without_seed(self.settings)

    def learning_curve(self, metric: str) -> list[tuple[int, float]]:
        """Return the steps and values at which a metric was measured on validation rows."""
        lines = read_metrics(self.folder) if self.folder.is_dir() else []
        name = f"valid/{metric}"
        return [(line["step"], line[name]) for line in lines if isinstance(line.get(name), int | float)]


@dataclass
class Sweep:
    """A sweep, as far as its folder tells."""

    folder: Path
    jobs: list[Job]
    defaults: dict[str, Any] = field(default_factory=dict)
    """What the settings in which the jobs differ are where none sets them; None is decided by model and data."""
    budget: Budget | None = None
    """The account of a search with a budget of time."""
    soup: Job | None = None
    """The mean of the weights of its longer runs."""
    problems: list[str] = field(default_factory=list)
    """What is missing or damaged, in sentences."""

    @classmethod
    def read(cls, folder: Path) -> Sweep:
        """Return what a sweep's folder holds.

        Raises:
            ConfigError: it is no sweep's folder, or its record is damaged.

        """
        path = folder / SWEEP_FILE
        try:
            content = json.loads(path.read_text("utf-8"))
            jobs, defaults = [_job(entry, folder) for entry in content["jobs"]], dict(content.get("defaults", {}))
        except OSError:
            raise ConfigError(f"{folder} is no sweep's folder: it has no {SWEEP_FILE}.") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ConfigError(f"{path} is not as a sweep writes it, so nothing in it can be trusted.") from None
        sweep = cls(folder, jobs, defaults, Budget.read(folder), _soup(folder))
        running = sum(job.status == RUNNING for job in jobs)
        if running:
            sweep.problems.append(f"{running} of the jobs have not ended: they are running, or were killed.")
        for job in (*jobs, *([sweep.soup] if sweep.soup else [])):
            try:
                job.predictions = Predictions.load(job.folder, AFTER)
            except DataError as error:
                sweep.problems.append(str(error))
            if not job.folder.is_dir():
                sweep.problems.append(f"{job.folder} is missing, so only what the sweep wrote down of it is shown.")
        return sweep

    @property
    def is_search(self) -> bool:
        """Whether its values were drawn, one seed each."""
        return (self.folder / STUDY_FILE).is_file()

    @property
    def chosen(self) -> Setting[Job] | None:
        """The setting that a search with a budget has chosen, with all of its seeds; None if there is none."""
        return next((setting for setting in self.settings if self._is_chosen(setting)), None)

    def _is_chosen(self, setting: Setting[Job]) -> bool:
        folders = () if self.budget is None else map(os.path.abspath, self.budget.chosen)
        return not {os.path.abspath(job.folder) for job in setting.jobs}.isdisjoint(folders)

    @property
    def explored(self) -> Sweep:
        """What tells of settings: the runs that choose them, without the longer ones of a search with a budget."""
        stage = None if self.budget is None else self.budget.choosing
        if stage is None:
            return self
        folders = set(map(os.path.abspath, stage.folders))
        return replace(self, jobs=[job for job in self.jobs if os.path.abspath(job.folder) in folders], budget=None)

    @property
    def own(self) -> Job | None:
        """The run of such a search without any of its settings; None if there is none."""
        return None if self.budget is None else self._run(self.budget.own)

    @property
    def model(self) -> Job | None:
        """What such a search ends with: its soup, or one of its runs; None if it has not ended."""
        return None if self.budget is None else self._run(self.budget.model)

    def _run(self, folder: str | None) -> Job | None:
        """Return the job or the soup in a folder, whose name is its own also where the sweep was moved."""
        runs = [*self.jobs, *([self.soup] if self.soup else [])]
        return next((run for run in runs if folder is not None and run.folder.name == Path(folder).name), None)

    @property
    def has_seeds(self) -> bool:
        """Whether a setting was tried with several seeds."""
        return any(len(setting.scores) > 1 for setting in self.settings)

    @property
    def settings(self) -> list[Setting[Job]]:
        """The settings, in the order of their first jobs."""
        return by_setting(self.jobs)

    @property
    def ranked(self) -> list[Setting[Job]]:
        """The settings with a score, the best first; above them, the one that a search with a budget has chosen."""
        scored = [setting for setting in self.settings if setting.mean is not None]
        return sorted(scored, key=lambda setting: (not self._is_chosen(setting), -(setting.mean or 0.0)))

    @property
    def axes(self) -> dict[str, list[str]]:
        """The settings that vary, without the seed, with their values in ascending order."""
        names = dict.fromkeys(name for job in self.jobs for name in job.others)
        values = {name: list(dict.fromkeys(job.others.get(name, "") for job in self.jobs)) for name in names}
        return {name: sorted(found, key=_order) for name, found in values.items() if len(found) > 1}

    @property
    def default(self) -> dict[str, str] | None:
        """The values that the settings that vary would have had without the sweep; None if they are not known."""
        values = {name: self._default_of(name) for name in self.axes}
        known = {name: value for name, value in values.items() if value is not None}
        return known if len(known) == len(values) else None

    def _default_of(self, name: str) -> str | None:
        """Return the value of a setting that no job sets, as a job typed it if one did; None if it is not known."""
        value = left_out = self.defaults.get(name)
        if value is None and name in self.defaults:
            configs = (config for config in map(_config, self.jobs) if config is not None)
            value = next((decided_value(config, name, self.axes) for config in configs), None)
        if value is None:
            return None
        typed = (typed for typed in self.axes[name] if is_value(typed, value) or is_value(typed, left_out))
        return next(typed, value_as_typed(value))

    @property
    def metric(self) -> Metric | None:
        """What the scores measure, if it is the same for all jobs."""
        names = {job.metric for job in self.jobs if job.metric is not None}
        return metric_named(names.pop()) if len(names) == 1 else None

    @property
    def are_comparable(self) -> bool:
        """Whether all jobs were measured on the same rows by the same metric, as far as that is known."""
        scored = [job.predictions for job in self.jobs if job.score is not None and job.predictions is not None]
        measured = {(predictions.fingerprint, predictions.metric) for predictions in scored}
        return len(measured) <= 1 and self.metric is not None


def number(value: str) -> float | None:
    """Return a setting's value as a number, None if it is none."""
    try:
        return float(value)
    except ValueError:
        return None


def _order(value: str) -> tuple[bool, float, str]:
    as_number = number(value)
    return as_number is None, as_number or 0.0, value


def _config(job: Job) -> TrainConfig | None:
    """Return the settings that a job began with, None if it has not written them."""
    try:
        return read_config(job.folder)
    except (ConfigError, OSError):
        return None


def _soup(sweep: Path) -> Job | None:
    folder = sweep / SOUP_FOLDER
    result = run_result(folder)
    if result is None:
        return None
    score = Result(folder, **result).score
    return Job({}, folder, score, None, FINISHED, 0.0, result["best_metric"], result)


def _job(entry: dict[str, Any], sweep: Path) -> Job:
    folder = Path(entry["folder"])
    if not folder.is_dir() and (sweep / folder.name).is_dir():
        folder = sweep / folder.name  # the sweep was moved, or another folder is the current one
    return Job(
        settings={str(name): str(value) for name, value in entry["settings"].items()},
        folder=folder,
        score=entry["score"],
        error=entry["error"],
        status=str(entry["status"]),
        seconds=float(entry["seconds"]),
        metric=entry["metric"],
        result=entry["result"] or {},
    )
