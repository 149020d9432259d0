"""Weights & Biases: the metrics and settings of a run, sent while it trains or kept for `wandb sync`."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from angle.config import TRACKING_MODES, TrackingConfig
from angle.errors import ConfigError, first_line
from angle.files import relative_to_cwd
from angle.timeouts import call_with_timeout
from angle.tracking import sink
from angle.tracking.console import LOGGER
from angle.tracking.metrics_file import read_metrics
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
        self._info, self._id = run, run.metadata.get(ID_KEY)
        self._first_step, self._is_unsent = 0, False
        if run.tracking.mode == "online":
            try:
                self._run = self._start("online")
            except Exception as error:  # of several types, for a server that is away, wrong or full
                self._go_offline(error)
        else:
            self._run = self._start_offline()

    def _start(self, mode: Literal["online", "offline"]) -> Any:
        wandb, config = _import_wandb(), self._info.tracking
        run = wandb.init(
            project=config.project,
            entity=config.entity,
            name=config.name or self._info.folder.name,
            tags=config.tags or None,
            mode=mode,
            dir=self._info.folder,
            config=self._info.settings,
            id=self._id,
            resume="allow",
            settings=wandb.Settings(init_timeout=config.timeout),
        )
        run.define_metric("*", step_metric="step")
        self._id = run.id
        return run

    def _start_offline(self) -> Any:
        try:
            return self._start("offline")
        except Exception as error:  # of a variable of its own, or a folder that cannot be written to
            raise ConfigError(
                f"tracking.mode=offline cannot work: Weights & Biases says {first_line(error)}. Unset the variables "
                f"that begin with WANDB_, or type tracking=none."
            ) from error

    def _go_offline(self, error: Exception) -> None:
        """Record offline from now on, because of what recording online raised."""
        _end_sender()  # it would not start another run of the same id
        self._run, self._is_unsent = self._start_offline(), True
        LOGGER.warning(
            "Warning: Weights & Biases cannot be reached (%s), so the run is recorded offline; to send it later, "
            "type %s",
            first_line(error),
            self._sync_command,
        )

    def _record_again_offline(self, error: Exception) -> None:
        """Go offline in the middle of a run, with what it has recorded so far.

        What has not been sent is in its online record, but `wandb sync` leaves those out, or stops where they break off
        because the process that sends has died. What has been sent is recorded twice.
        """
        self._go_offline(error)
        for values in read_metrics(self._info.folder):
            if values["step"] >= self._first_step:
                self._run.log(values)

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
        return {ID_KEY: self._id}

    def rewind(self, step: int) -> None:
        """Note the first step that is recorded; a repeated one is recorded again."""
        self._first_step = step

    def log_metrics(self, step: int, values: Mapping[str, float], *, show: bool = False) -> None:
        """Record a step's metrics."""
        try:
            self._run.log({"step": step, **values})
        except Exception as error:  # the process that sends has ended, as it does after some wrong answers
            self._record_again_offline(error)

    def close(self, *, failed: bool) -> None:
        """Finish the run as completed or failed; if the server does not take all of it in time, say how to send it."""
        try:
            self._finish(failed=failed)
        except Exception as error:  # also as in `log_metrics`
            self._record_again_offline(error)
            self._finish(failed=failed)
        else:
            if self._is_unsent:
                LOGGER.info("Weights & Biases has not got this run yet; to send it, type %s", self._sync_command)

    def _finish(self, *, failed: bool) -> None:
        call_with_timeout(self._info.tracking.timeout, lambda: self._run.finish(exit_code=int(failed)))


def _end_sender() -> None:
    """End the process that sends, which has ended already or waits for an answer, without a word."""
    with suppress(Exception, SystemExit):  # SystemExit: it ended with a code of its own
        _import_wandb().teardown()


def _import_wandb() -> Any:
    if not os.environ.get("WANDB_MODE"):  # empty means not set, but it would not accept that
        os.environ.pop("WANDB_MODE", None)
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # for its own crash reports it waits 15 seconds at the end
    os.environ.setdefault("WANDB_SILENT", "true")  # to greet by name, it waits 5 seconds for a server that is away
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
