"""MLflow, by accelerate's tracker: where MLFLOW_TRACKING_URI says, else in mlflow.db of the current folder."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from angle.config import TrackingConfig
from angle.errors import ConfigError
from angle.quiet import quiet_loggers
from angle.tracking import sink
from angle.tracking.console import LOGGER
from angle.tracking.sink import RunInfo, dashboard_name

if TYPE_CHECKING:
    from accelerate.tracking import MLflowTracker

#: What a resumed run is found by: a tag of MLflow's, and a key of run.json.
TAG, KEY = "angle.run", "mlflow_run"


class Sink(sink.Sink):
    """Metrics grouped as `dashboard_name` says, settings as parameters, the summary as metrics without a step."""

    def __init__(self, run: RunInfo) -> None:
        """Say who the run is; MLflow is asked when there is something to record, and is done without if it fails."""
        self._run = run
        self._id: str = run.metadata.get(KEY) or uuid4().hex

    @classmethod
    def check(cls, config: TrackingConfig) -> None:
        """Raise ConfigError if a package is missing."""
        for package in ("mlflow", "sqlalchemy", "alembic"):
            if importlib.util.find_spec(package) is None:
                raise ConfigError(
                    f"tracking.mlflow=true needs the package {package}: type pip install -e '.[mlflow]', or leave it "
                    f"out."
                )

    def run_metadata(self) -> dict[str, Any]:
        """Return what a resumed run is found by."""
        return {KEY: self._id}

    @cached_property
    def _tracker(self) -> MLflowTracker:
        """The run in MLflow: the one that an earlier start of this run has made, or a new one with its settings."""
        from accelerate.tracking import MLflowTracker

        config = self._run.tracking
        # By default it would try for minutes, at every step, to reach a server that is away.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", f"{config.timeout:.0f}")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        import mlflow  # sets up its own loggers

        with quiet_loggers("mlflow", "mlflow.store.db.utils", "mlflow.tracking.fluent", "alembic"):
            known = mlflow.search_runs(
                experiment_names=[config.project], filter_string=f"tags.`{TAG}` = '{self._id}'", output_format="list"
            )
            tags = {TAG: self._id} | dict.fromkeys(config.tags, "true")
            tracker = MLflowTracker(
                config.project,
                run_id=known[0].info.run_id if known else None,
                tags=tags,
                run_name=config.name or self._run.folder.resolve().name,
            )
            tracker.start()
        if not known:
            tracker.store_init_configuration(dict(_flat(self._run.settings)))
        return tracker

    def log_metrics(self, step: int, values: Mapping[str, float], *, show: bool = False) -> None:
        """Record a step's metrics."""
        self._tracker.log({_allowed(dashboard_name(name)): float(value) for name, value in values.items()}, step=step)

    def log_summary(self, values: Mapping[str, Mapping[str, float]]) -> None:
        """Record first, best, last and test scores by when and name, such as best.loss."""
        self._tracker.log(
            {_allowed(f"{when}.{name}"): score for when, scores in values.items() for name, score in scores.items()}
        )

    def log_model(self, folder: Path) -> None:
        """Keep the model as an artifact, if that is asked for."""
        if self._run.tracking.model:
            self._tracker.log_artifacts(str(folder), "model")

    def close(self, *, failed: bool) -> None:
        """End the run, as finished or failed."""
        if "_tracker" in self.__dict__:
            import mlflow

            mlflow.end_run("FAILED" if failed else "FINISHED")
            uri = mlflow.get_tracking_uri()
            LOGGER.info("MLflow  has this run in %s", uri)
            if uri.startswith("sqlite"):
                LOGGER.info("        pip install mlflow && mlflow ui --backend-store-uri %s", uri)


def _allowed(name: str) -> str:
    """Return a metric's name as MLflow takes it."""
    return name.replace("@", "_at_")


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield settings by their dotted names."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
