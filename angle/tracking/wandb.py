"""Weights & Biases: the metrics and settings of a run, sent while it trains or kept for `wandb sync`."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from angle.config import TRACKING_MODES, TrackingConfig
from angle.errors import ConfigError, first_line
from angle.files import relative_to_cwd
from angle.timeouts import call_with_timeout
from angle.tracking import sink
from angle.tracking.console import LOGGER
from angle.tracking.sink import RunInfo

#: Key in run.json of the id under which Weights & Biases knows the run.
ID_KEY = "wandb_id"


class Sink(sink.Sink):
    """Records into a run of Weights & Biases; a resumed run continues its own. Without its server: offline."""

    def __init__(self, run: RunInfo) -> None:
        """Start the run, or continue the one whose id run.json holds.

        Raises:
            ConfigError: it cannot be recorded even offline.

        """
        self._timeout = run.tracking.timeout
        if run.tracking.mode == "online":
            try:
                self._run = self._start(run, "online")
            except Exception as error:  # of several types, for a server that is away, wrong or full
                self._run = self._start(run, "offline")
                LOGGER.warning(
                    "Warning: Weights & Biases cannot be reached (%s), so the run is recorded offline; to send it "
                    "later, type %s",
                    first_line(error),
                    self._sync_command,
                )
        else:
            try:
                self._run = self._start(run, "offline")
            except Exception as error:  # of a variable of its own, or a folder that cannot be written to
                raise ConfigError(
                    f"tracking.mode=offline cannot work: Weights & Biases says {first_line(error)}. Unset the "
                    f"variables that begin with WANDB_, or type tracking=none."
                ) from error
        self._run.define_metric("*", step_metric="step")

    def _start(self, run: RunInfo, mode: Literal["online", "offline"]) -> Any:
        wandb, config = _import_wandb(), run.tracking
        return wandb.init(
            project=config.project,
            entity=config.entity,
            name=config.name or run.folder.name,
            tags=config.tags or None,
            mode=mode,
            dir=run.folder,
            config=run.settings,
            id=run.metadata.get(ID_KEY),
            resume="allow",
            settings=wandb.Settings(silent=True, init_timeout=self._timeout),
        )

    @property
    def _sync_command(self) -> str:
        """How to send later what is recorded here."""
        return f"wandb sync {shlex.quote(relative_to_cwd(Path(self._run.dir).parent))}"

    @classmethod
    def check(cls, config: TrackingConfig) -> None:
        """Raise ConfigError if Weights & Biases would ask for a key in the middle of a run, or does not take it."""
        if config.mode != "online":
            return
        try:
            problem = "" if _import_wandb().login(prompt=False, verify=False) else "there is none"
        except Exception as error:  # of several types, for a key, an address or a file of settings that cannot be
            problem = first_line(error)
        if problem:
            raise ConfigError(
                f"tracking.mode=online needs a key of Weights & Biases ({problem}): type wandb login once, or set "
                f"WANDB_API_KEY, or record offline with WANDB_MODE=offline."
            )

    def run_metadata(self) -> dict[str, Any]:
        """Return the id of the run."""
        return {ID_KEY: self._run.id}

    def log_metrics(self, step: int, values: Mapping[str, float], *, console_summary: str | None = None) -> None:
        """Record a step's metrics; a repeated step of a resumed run is recorded again."""
        self._run.log({"step": step, **values})

    def close(self, *, failed: bool) -> None:
        """Finish the run as completed or failed.

        Raises:
            RuntimeError: the server did not take all of it, or not in time; how to send it later.

        """
        try:
            call_with_timeout(self._timeout, lambda: self._run.finish(exit_code=int(failed)))
        except Exception as error:  # also of the process that sends, which a wrong answer can end
            raise RuntimeError(f"{first_line(error)}; to send them later, type {self._sync_command}") from None


def _import_wandb() -> Any:
    if not os.environ.get("WANDB_MODE"):  # empty means not set, but it would not accept that
        os.environ.pop("WANDB_MODE", None)
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # for its own crash reports it waits 15 seconds at the end
    import wandb

    return wandb


def tracking_mode(setting: str) -> str:
    """Return the mode of Weights & Biases: the environment's WANDB_MODE if set, otherwise the setting.

    Raises:
        ConfigError: WANDB_MODE has an unknown value.

    """
    mode = os.environ.get("WANDB_MODE") or setting
    if mode not in TRACKING_MODES:
        raise ConfigError(f"WANDB_MODE={mode} is not known. Choose one of: {', '.join(TRACKING_MODES)}.")
    return mode
