"""Weights & Biases: the metrics and settings of a run, sent while it trains or kept for `wandb sync`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal, cast

from angle.config import TRACKING_MODES, TrackingConfig
from angle.errors import ConfigError
from angle.tracking import sink
from angle.tracking.sink import RunInfo

#: Key in run.json of the id under which Weights & Biases knows the run.
ID_KEY = "wandb_id"


class Sink(sink.Sink):
    """Records into a run of Weights & Biases; a resumed run continues its own."""

    def __init__(self, run: RunInfo) -> None:
        """Start the run, or continue the one whose id run.json holds."""
        import wandb

        config = run.tracking
        self._run = wandb.init(
            project=config.project,
            entity=config.entity,
            name=config.name or run.folder.name,
            tags=config.tags or None,
            mode=cast(Literal["online", "offline"], config.mode),
            dir=run.folder,
            config=run.settings,
            id=run.metadata.get(ID_KEY),
            resume="allow",
            settings=wandb.Settings(silent=True),
        )
        self._run.define_metric("*", step_metric="step")

    @classmethod
    def check(cls, config: TrackingConfig) -> None:
        """Raise ConfigError if Weights & Biases would ask for a key in the middle of a run."""
        if config.mode != "online":
            return
        import wandb

        if not wandb.login(prompt=False, verify=False):
            raise ConfigError(
                "tracking.mode=online needs a key of Weights & Biases: type wandb login once, or set WANDB_API_KEY, or "
                "record offline with WANDB_MODE=offline."
            )

    def run_metadata(self) -> dict[str, Any]:
        """Return the id of the run."""
        return {ID_KEY: self._run.id}

    def log_metrics(self, step: int, values: Mapping[str, float], *, console_summary: str | None = None) -> None:
        """Record a step's metrics; a repeated step of a resumed run is recorded again."""
        self._run.log({"step": step, **values})

    def close(self, *, failed: bool) -> None:
        """Finish the run as completed or failed."""
        self._run.finish(exit_code=int(failed))


def tracking_mode(setting: str) -> str:
    """Return the mode of Weights & Biases: the environment's WANDB_MODE if set, otherwise the setting.

    Raises:
        ConfigError: WANDB_MODE has an unknown value.

    """
    mode = os.environ.get("WANDB_MODE") or setting
    if mode not in TRACKING_MODES:
        raise ConfigError(f"WANDB_MODE={mode} is not known. Choose one of: {', '.join(TRACKING_MODES)}.")
    return mode
