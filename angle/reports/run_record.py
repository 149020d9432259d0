"""What a run's folder holds for a page, whatever its state: what is missing or damaged is said, and left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from angle.config import RUN_FILE, TrainConfig
from angle.config.build import build_config
from angle.config.record import read_config, read_record
from angle.errors import ConfigError, DataError
from angle.evaluation.evaluator import Metric
from angle.evaluation.predictions import AFTER, BEFORE, FOLDER, Predictions
from angle.evaluation.run_evaluators import metric_named
from angle.tracking.metrics_file import read_metrics

T = TypeVar("T")


@dataclass
class RunRecord:
    """A run, as far as its folder tells."""

    folder: Path
    config: TrainConfig | None = None
    """Its settings, with everything decided."""
    requested: TrainConfig | None = None
    """Its settings as they were asked for."""
    record: dict[str, Any] = field(default_factory=dict)
    """What run.json says."""
    metrics: list[dict[str, Any]] = field(default_factory=list)
    """The lines of metrics.jsonl."""
    before: Predictions | None = None
    after: Predictions | None = None
    problems: list[str] = field(default_factory=list)
    """What is missing or damaged, in sentences."""

    @classmethod
    def read(cls, folder: Path) -> RunRecord:
        """Return what a run's folder holds.

        Raises:
            ConfigError: it is no run's folder.

        """
        if not (folder / RUN_FILE).is_file():
            raise ConfigError(
                f"{folder} is no run's folder: it has no {RUN_FILE}; give the folder of a run or a sweep."
            )
        run = cls(folder)
        run.record = run._try(read_record, folder) or {}
        run.config = run._try(read_config, folder)
        run.requested = run._try(build_config, run.record.get("requested", {}), TrainConfig)
        run.metrics = read_metrics(folder)
        run.before = run._try(Predictions.load, folder, BEFORE)
        run.after = run._try(Predictions.load, folder, AFTER)
        if run.record and not run.record.get("finished"):
            run.problems.append(f"This run has not finished: it has reached step {run.last_step}.")
        if not run.metrics and run.soup is None:
            run.problems.append("There are no metrics yet, so there are no curves.")
        if not (folder / FOLDER).is_dir():
            run.problems.append("No validation rows were measured in it, so there is nothing of single texts.")
        return run

    def _try(self, read: Callable[..., T], *arguments: object) -> T | None:
        try:
            return read(*arguments)
        except (ConfigError, DataError) as error:
            self.problems.append(str(error))
        return None

    @property
    def name(self) -> str:
        """The folder's name, with the one above where it is a time or a number."""
        path = self.folder.resolve()
        return path.name if not path.name[:1].isdigit() else f"{path.parent.name}/{path.name}"

    @property
    def result(self) -> dict[str, Any]:
        """The scores that a finished run ends with."""
        return self.record.get("result") or {}

    @property
    def soup(self) -> dict[str, Any] | None:
        """What it is made of, if it is a soup: the mean of other runs, which was not trained itself."""
        return self.record.get("soup")

    @property
    def metric(self) -> Metric:
        """The metric that chose the best model, or the first that was measured."""
        chosen = self.result.get("best_metric") or (self.after.metric if self.after else None)
        return metric_named(chosen)

    @property
    def last_step(self) -> int:
        """The last step of which something was recorded."""
        return max((line["step"] for line in self.metrics), default=0)

    @property
    def best_step(self) -> int | None:
        """The step of the model that is used."""
        return self.after.step if self.after is not None else self.result.get("best_step")

    def series(self, name: str) -> list[tuple[int, float]]:
        """Return the steps and values at which something was recorded."""
        return [(line["step"], line[name]) for line in self.metrics if isinstance(line.get(name), int | float)]
