"""Where a run's messages and metrics go: console, log file, metrics.jsonl, Weights & Biases."""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
from typing import Any, Literal, cast

from tqdm import tqdm

from angle.config import TrainConfig
from angle.errors import ConfigError
from angle.training.run_folder import RunFolder

LOGGER = logging.getLogger("angle")
MODES = ("disabled", "online", "offline")


class _ConsoleHandler(logging.Handler):
    """Prints above a progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message."""
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()


class Tracker:
    """Records of one run. On processes other than the main one, every call does nothing."""

    def __init__(self, config: TrainConfig, folder: RunFolder, *, is_main: bool, resumed_id: str | None) -> None:
        """Open the log, and the Weights & Biases run if enabled."""
        self._folder = folder if is_main else None
        self._wandb: Any = None
        self._handlers: list[logging.Handler] = []
        self._bar: tqdm[Any] | None = None
        self._total = 0
        if not is_main:
            return
        self._add_handler(_ConsoleHandler(), "%(message)s")
        self._add_handler(
            logging.FileHandler(folder.path / "train.log", encoding="utf-8"), "%(asctime)s %(levelname)s %(message)s"
        )
        settings = config.tracking
        if settings.mode != "disabled":
            import wandb

            self._wandb = wandb.init(
                project=settings.project,
                entity=settings.entity,
                name=settings.name or folder.path.name,
                tags=settings.tags or None,
                mode=cast(Literal["online", "offline"], settings.mode),
                dir=folder.path,
                config=dataclasses.asdict(config),
                id=resumed_id,
                resume="allow",
                settings=wandb.Settings(silent=True),
            )
            self._wandb.define_metric("*", step_metric="step")

    @property
    def wandb_id(self) -> str | None:
        """The id under which Weights & Biases knows the run."""
        return None if self._wandb is None else str(self._wandb.id)

    def _add_handler(self, handler: logging.Handler, layout: str) -> None:
        handler.setFormatter(logging.Formatter(layout))
        LOGGER.addHandler(handler)
        LOGGER.setLevel(logging.INFO)
        LOGGER.propagate = False
        self._handlers.append(handler)

    def info(self, text: str) -> None:
        """Print and log a message."""
        if self._folder is not None:
            LOGGER.info(text)

    def warning(self, text: str) -> None:
        """Print and log a warning."""
        if self._folder is not None:
            LOGGER.warning("Warning: %s", text)

    def start_progress(self, done: int, total: int) -> None:
        """Show a progress bar over optimiser steps if the output is a terminal."""
        self._total = total
        if self._folder is not None:
            self._bar = tqdm(
                total=total,
                initial=done,
                unit="step",
                dynamic_ncols=True,
                disable=None,
                file=sys.stdout,
                mininterval=0.25,
            )

    def advance(self) -> None:
        """Advance the progress bar by one step."""
        if self._bar is not None:
            self._bar.update()

    def log_metrics(self, step: int, values: dict[str, float], *, in_words: str | None = None) -> None:
        """Record a step's metrics everywhere; `in_words` is shown in the bar, or logged where there is none."""
        if self._folder is None:
            return
        line = {"step": step} | values
        self._folder.log(line)
        if self._wandb is not None:
            self._wandb.log(line)
        if in_words and self._bar is not None and not self._bar.disable:
            self._bar.set_postfix_str(in_words, refresh=False)
        elif in_words:
            LOGGER.info("step %*d/%d  %s", len(str(self._total)), step, self._total, in_words)

    def stop_progress(self) -> None:
        """Close the progress bar, leaving its last state visible."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def close(self, *, failed: bool = False) -> None:
        """Finish all records."""
        self.stop_progress()
        if self._wandb is not None:
            self._wandb.finish(exit_code=int(failed))
        for handler in self._handlers:
            LOGGER.removeHandler(handler)
            handler.close()


def tracking_mode(setting: str) -> str:
    """Return the Weights & Biases mode: the environment's WANDB_MODE if set, otherwise the setting.

    Raises:
        ConfigError: WANDB_MODE has an unknown value.

    """
    mode = os.environ.get("WANDB_MODE") or setting
    if mode not in MODES:
        raise ConfigError(f"WANDB_MODE={mode} is not known. Choose one of: {', '.join(MODES)}.")
    return mode


def check_credentials(mode: str) -> None:
    """Raise ConfigError if Weights & Biases would ask for a key in the middle of a run."""
    if mode != "online":
        return
    import wandb

    if not wandb.login(prompt=False, verify=False):
        raise ConfigError(
            "tracking.mode=online needs a key of Weights & Biases: type wandb login once, or set WANDB_API_KEY, or "
            "record offline with WANDB_MODE=offline."
        )
