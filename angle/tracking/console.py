"""The console and its copy, train.log: messages, warnings, a progress bar."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from angle.terminal import COLUMNS, clear_announcement, columns, labelled
from angle.tracking import sink
from angle.tracking.sink import RunInfo

LOG_FILE = "train.log"
#: Columns that a progress bar needs beside its status and its numbers of steps.
BAR_COLUMNS = len("step / ███  1:23:45 left") + 1
LOGGER = logging.getLogger("angle")
#: What is known of a run before it starts; a logger of its own for `without_repetitions`.
HEADER_LOGGER = LOGGER.getChild("header")
_printed: set[str] | None = None


class Sink(sink.Sink):
    """Prints on the console, and writes the same into train.log with times."""

    may_fail = False

    def __init__(self, run: RunInfo) -> None:
        """Open the log, and direct the package's loggers to it and to the console until `close`."""
        log_file = _LogFile(run.folder / LOG_FILE)
        self._handlers, self._log_file = [_ConsoleHandler(), log_file], log_file
        self._bar: tqdm[Any] | None = None
        self._status: dict[str, str] = {}
        self._total_steps = 0
        self._logger_state = (LOGGER.level, LOGGER.propagate)
        for handler in self._handlers:
            LOGGER.addHandler(handler)
        LOGGER.setLevel(logging.INFO)
        LOGGER.propagate = False

    def info(self, text: str) -> None:
        """Print a message."""
        LOGGER.info(text)

    def header(self, label: str, text: str) -> None:
        """Print a line behind its label."""
        HEADER_LOGGER.info(labelled(label, text))

    def warning(self, text: str) -> None:
        """Print a warning."""
        LOGGER.warning("Warning: %s", text)

    def start_progress(self, step: int, total_steps: int) -> None:
        """Show a progress bar over optimiser steps if the output is a terminal."""
        self._total_steps = total_steps
        self._bar = tqdm(
            total=total_steps,
            initial=step,
            bar_format="step {n_fmt}/{total_fmt} {bar} {desc} {remaining} left",
            ncols=columns() - 1,  # a full line would make some terminals begin another one
            disable=None,
            file=sys.stdout,
            mininterval=0.25,
        )
        self._show_status()

    def advance(self) -> None:
        """Advance the progress bar by one step."""
        if self._bar is not None:
            self._bar.update()

    def stop_progress(self) -> None:
        """Close the progress bar, leaving its last state visible."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def show_best(self, score: str) -> None:
        """Show it in the progress bar."""
        self._show_status(best=score)

    def log_metrics(self, step: int, values: Mapping[str, float], *, show: bool = False) -> None:
        """Write a line: into the log, and where there is no progress bar to show it, on the console too."""
        if not show:
            return
        if "epoch" in values:
            self._show_status(epoch=f"{values['epoch']:.2f}")
        self._show_status(loss=f"{values['loss']:.3f}", speed=f"{values['texts_per_second']:,.0f} texts/s")
        line = self._step_line(step, values)
        if self._bar is not None and not self._bar.disable:
            self._log_file.write(line)
        else:
            LOGGER.info(line)

    def _show_status(self, **changes: str) -> None:
        """Change what stands in the progress bar, if there is one."""
        self._status |= changes
        if self._bar is None:
            return
        parts = [f"{name} {self._status[name]}" for name in ("epoch", "loss", "best") if name in self._status]
        parts += [self._status["speed"]] if "speed" in self._status else []
        room = columns() - BAR_COLUMNS - 2 * len(str(self._total_steps))
        while len("  ".join(parts)) > room:  # on a narrow terminal, or in a run of very many steps
            parts.pop()
        self._bar.set_description_str("  ".join(parts), refresh=False)

    def _step_line(self, step: int, values: Mapping[str, float]) -> str:
        """Return the metrics of a step as a line; the terms of its loss only where they fit."""
        terms = ", ".join(
            f"{name.removeprefix('loss/')} {value:.3f}" for name, value in values.items() if name.startswith("loss/")
        )
        start = f"step {step:{len(str(self._total_steps))}}/{self._total_steps}  loss {values['loss']:.3f}"
        end = f"  {values['texts_per_second']:,.0f} texts/s"
        line = f"{start} ({terms}){end}"
        return line if len(line) <= COLUMNS else f"{start}{end}"

    def close(self, *, failed: bool) -> None:
        """Close the progress bar and the log, and give the loggers back as they were."""
        self.stop_progress()
        level, LOGGER.propagate = self._logger_state
        LOGGER.setLevel(level)
        for handler in self._handlers:
            LOGGER.removeHandler(handler)
            handler.close()


@contextmanager
def without_repetitions() -> Iterator[None]:
    """Print no header line and no note that was printed before, in other runs too; the logs have all of them.

    The jobs of a sweep have most of them in common.
    """
    global _printed
    _printed = set()
    try:
        yield
    finally:
        _printed = None


def append_to_log(folder: Path, text: str) -> None:
    """Write a message into the log of a run whose sinks are closed."""
    log_file = _LogFile(folder / LOG_FILE)
    log_file.write(text)
    log_file.close()


class _LogFile(logging.FileHandler):
    """Raises what keeps it from writing, of which logging prints a traceback for every line."""

    def __init__(self, path: Path) -> None:
        """Open the file to append to it."""
        super().__init__(path, encoding="utf-8")
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))

    def write(self, text: str) -> None:
        """Write a message that is for the log only."""
        self.emit(LOGGER.makeRecord(LOGGER.name, logging.INFO, __file__, 0, text, (), None))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Raise the error that is being handled."""
        raise

    def close(self) -> None:
        """Close the file; what it could not write it cannot write now."""
        with suppress(OSError):
            super().close()


class _ConsoleHandler(logging.Handler):
    """Prints above a progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message."""
        text = self.format(record)
        if record.name == HEADER_LOGGER.name and _printed is not None:
            if text in _printed:
                return
            _printed.add(text)
        clear_announcement()
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()
