"""Weights & Biases: the metrics and settings of a run, sent while it trains or kept for `wandb sync`."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from html import escape
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from angle.config import TRACKING_MODES, TrackingConfig
from angle.errors import ConfigError, first_line
from angle.files import relative_to_cwd
from angle.timeouts import call_with_timeout
from angle.tracking import sink
from angle.tracking.console import LOGGER
from angle.tracking.metrics_file import read_metrics
from angle.tracking.sink import RunInfo, dashboard_name

#: Key in run.json of the id under which Weights & Biases knows the run.
ID_KEY = "wandb_id"
#: Seconds in which a model is sent, at most.
MODEL_SECONDS = 3600
#: What Hydra writes into the folder of a sweep.
SWEEP_MARK = "multirun.yaml"


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
            group=config.group or _sweep_name(self._info.folder),
            job_type="train",
            tags=config.tags or None,
            mode=mode,
            dir=self._info.folder.resolve(),  # its process may have been started in another folder
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
                self._log(values)

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
            self._log({"step": step, **values})
        except Exception as error:  # the process that sends has ended, as it does after some wrong answers
            self._record_again_offline(error)  # with these, which metrics.jsonl has already

    def _log(self, values: Mapping[str, Any]) -> None:
        self._run.log({name if name == "step" else dashboard_name(name): value for name, value in values.items()})

    def _try(self, record: Callable[[], object]) -> None:
        """Record something that metrics.jsonl does not have."""
        try:
            record()
        except Exception as error:  # as in `log_metrics`
            self._record_again_offline(error)
            record()

    def log_histograms(self, step: int, values: Mapping[str, npt.NDArray[np.floating]]) -> None:
        """Record how several kinds of values are spread."""
        histograms = {name: _import_wandb().Histogram(of_kind) for name, of_kind in values.items()}
        self._try(lambda: self._run.log({"step": step, **histograms}))

    def log_table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Record a table of texts, as HTML: a table of Weights & Biases' own would be an artifact in every run."""
        lines = [f"<tr>{''.join(f'<th>{escape(column)}</th>' for column in columns)}</tr>"]
        lines += [f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows]
        table = _import_wandb().Html(f"<table>{''.join(lines)}</table>")
        self._try(lambda: self._run.log({"step": step, name: table}))

    def log_summary(self, values: Mapping[str, Mapping[str, float]]) -> None:
        """Put scores where Weights & Biases' tables of runs look for them."""
        self._try(lambda: self._run.summary.update({name: dict(scores) for name, scores in values.items()}))

    def log_model(self, folder: Path) -> None:
        """Keep the model as an artifact, if that is asked for."""
        if self._info.tracking.model:
            artifact = _import_wandb().Artifact(f"{self._id}-model", type="model")
            artifact.add_dir(str(folder))
            self._try(lambda: self._run.log_artifact(artifact))

    def close(self, *, failed: bool) -> None:
        """Finish the run as completed or failed; if the server does not take all of it in time, say how to send it."""
        try:
            self._finish(failed=failed)
        except Exception as error:  # also as in `log_metrics`
            self._record_again_offline(error)
            self._finish(failed=failed)
        else:
            if self._is_unsent or self._info.tracking.mode == "offline":
                folder = self._sync_command.removeprefix("wandb sync ")
                LOGGER.info("W&B     has not got this run yet. To send it, or to look at it here, type")
                LOGGER.info("        %s\n        wandb leet %s", self._sync_command, folder)

    def _finish(self, *, failed: bool) -> None:
        config = self._info.tracking
        seconds = config.timeout + (MODEL_SECONDS if config.model and config.mode == "online" else 0)
        call_with_timeout(seconds, lambda: self._run.finish(exit_code=int(failed)))


def _sweep_name(folder: Path) -> str | None:
    """Return the name of the sweep whose job has this folder, None if it is of none."""
    sweep = folder.resolve().parent
    if not (sweep / SWEEP_MARK).is_file():
        return None
    return f"{sweep.parent.name}/{sweep.name}" if sweep.name[:1].isdigit() else sweep.name


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
