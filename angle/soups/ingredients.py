"""The runs that a soup is made of: which ones, of a list or of a sweep, and what each has measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from angle.config import RUN_FILE, SWEEP_FILE, TrainConfig
from angle.config.record import read_config, read_record
from angle.errors import ConfigError
from angle.evaluation.evaluator import Metric
from angle.evaluation.run_evaluators import metric_named
from angle.files import relative_to_cwd
from angle.modeling.locations import ADAPTER_FILE, check_unchanged, locate_model
from angle.modeling.weight_files import ADAPTER_WEIGHT_FILES, fingerprint, weight_files
from angle.sweeps.record import FINISHED
from angle.sweeps.sweep import Sweep

UNIFORM, GREEDY = "uniform", "greedy"
#: The run folder's model that a soup is made of where there is one; its score is the run's best.
BEST = "best"
#: What messages about one of its files call it.
NAMED = "the soup's run"


@dataclass(frozen=True)
class Ingredient:
    """A finished run, and the model in it that is used."""

    folder: Path
    """The run's."""
    model: Path
    """Its best model, or the final one where none was chosen."""
    config: TrainConfig
    """Its settings, with everything decided."""
    record: dict[str, Any]
    """The content of its run.json."""

    @classmethod
    def read(cls, folder: Path) -> Ingredient:
        """Return what a run's folder holds.

        Raises:
            ConfigError: it is no run's, the run has not finished, or a file is not as it was written.

        """
        if not (folder / RUN_FILE).is_file():
            kind = "a sweep's folder beside others" if (folder / SWEEP_FILE).is_file() else "no run's folder"
            hint = "give one sweep alone, or runs" if (folder / SWEEP_FILE).is_file() else f"it has no {RUN_FILE}"
            raise ConfigError(f"{folder} is {kind}: {hint}.")
        record = read_record(folder)
        if not record.get("finished"):
            raise ConfigError(
                f"{folder} is a run that has not finished: finish it with python train.py train.resume={folder}, or "
                f"leave it out."
            )
        model = Path(locate_model(str(folder), NAMED))
        check_unchanged(str(model), NAMED)
        return cls(folder, model, read_config(folder), record)

    @property
    def name(self) -> str:
        """The run's folder, as short as it can be typed."""
        return relative_to_cwd(self.folder)

    @property
    def result(self) -> dict[str, Any]:
        """What the run has measured."""
        result: dict[str, Any] = self.record["result"]
        return result

    @property
    def metric(self) -> Metric | None:
        """What chose its best model; None if nothing did."""
        name = self.result["best_metric"]
        return None if name is None else metric_named(name)

    @property
    def score(self) -> float | None:
        """What the run measured of this model by that metric; None without one."""
        if self.metric is None:
            return None
        if self.model.name == BEST:
            value: float | None = self.result["best_score"]
        else:
            value = self.result.get("valid_after", {}).get(self.metric.name)
        return value

    @property
    def test_score(self) -> float | None:
        """What the run measured of this model on data.test; None if it has measured none, or another model."""
        was_measured = self.model.name == BEST or self.result["best_step"] in (None, self.result["steps"])
        value: float | None = self.result["test_after"] if was_measured else None
        return value

    @property
    def has_adapters(self) -> bool:
        """Whether its model is an adapter."""
        return (self.model / ADAPTER_FILE).is_file()

    @property
    def started_from(self) -> dict[str, str] | None:
        """Hashes of the weights that it started from, none of the built-in model; None if they were not recorded."""
        weights: dict[str, str] | None = self.record.get("weights", {}).get("model")
        return weights

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the model's weights."""
        files = [self.model / ADAPTER_WEIGHT_FILES[0]] if self.has_adapters else weight_files(str(self.model))
        return fingerprint(files)


def find_ingredients(folders: Sequence[Path], method: str, at_least: int) -> list[Ingredient]:
    """Return the runs in folders, or the finished ones of a sweep.

    Of a sweep whose jobs differ in more than their seed, a uniform soup takes the seeds of the best setting, because
    those of a worse one would only make it worse.

    Args:
        folders: that of one sweep, or those of runs.
        method: uniform or greedy.
        at_least: how many are needed.

    Raises:
        ConfigError: they are too few, one is given twice, or one cannot be used.

    """
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"{folder} is no folder: give those of finished runs, or that of a sweep.")
    if len(folders) == 1 and (folders[0] / SWEEP_FILE).is_file() and not (folders[0] / RUN_FILE).is_file():
        return [Ingredient.read(folder) for folder in _runs_of_sweep(folders[0], method, at_least)]
    known: dict[Path, Path] = {}
    for folder in folders:
        if (same := known.setdefault(folder.resolve(), folder)) is not folder:
            raise ConfigError(
                f"{folder} is the same run as {same}: give different ones, or more of one by --weights 2 1."
            )
    if len(folders) < at_least:
        raise ConfigError(
            f"{folders[0]} alone makes no soup: give two runs or more, or the share of the model that it started from "
            f"by --base-share 0.3."
        )
    return [Ingredient.read(folder) for folder in folders]


def _runs_of_sweep(folder: Path, method: str, at_least: int) -> list[Path]:
    sweep = Sweep.read(folder)
    jobs, of_what = sweep.jobs, f"{folder} has"
    if method == UNIFORM and sweep.axes:
        if not sweep.ranked:
            raise ConfigError(
                f"The jobs of {folder} differ in {', '.join(sweep.axes)} and were not measured, so the best setting is "
                f"unknown: give the runs themselves."
            )
        jobs, of_what = sweep.ranked[0].jobs, f"{sweep.ranked[0].name}, the best setting of {folder}, has"
    finished = [job.folder for job in jobs if job.status == FINISHED]
    if len(finished) < at_least:
        count = f"{len(finished)} finished run{'' if len(finished) == 1 else 's'}"
        hint = "a sweep of it over train.seed=1,2,3 has three"
        hint += ", and --method greedy takes those of all settings" if method == UNIFORM and sweep.axes else ""
        raise ConfigError(f"{of_what} {count}, and a soup needs two: {hint}.")
    return finished
