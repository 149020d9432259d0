"""The console and its copy, train.log: messages, warnings, a progress bar."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from tqdm import tqdm

from angle.tracking import sink
from angle.tracking.sink import RunInfo

LOG_FILE = "train.log"
LOGGER = logging.getLogger("angle")
#: Advice on the settings; a logger of its own for `without_repeated_notes`.
NOTES_LOGGER = LOGGER.getChild("notes")


class Sink(sink.Sink):
    """Prints on the console, and writes the same into train.log with times."""

    may_fail = False

    def __init__(self, run: RunInfo) -> None:
        """Open the log, and direct the package's loggers to it and to the console until `close`."""
        log_file = _LogFile(run.folder / LOG_FILE, encoding="utf-8")
        log_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self._handlers = [_ConsoleHandler(), log_file]
        self._bar: tqdm[Any] | None = None
        self._total_steps = 0
        self._logger_state = (LOGGER.level, LOGGER.propagate)
        for handler in self._handlers:
            LOGGER.addHandler(handler)
        LOGGER.setLevel(logging.INFO)
        LOGGER.propagate = False

    def info(self, text: str) -> None:
        """Print a message."""
        LOGGER.info(text)

    def note(self, text: str) -> None:
        """Print a note, labelled as in the banner."""
        NOTES_LOGGER.info("%-8s%s", "note", text)

    def warning(self, text: str) -> None:
        """Print a warning."""
        LOGGER.warning("Warning: %s", text)

    def start_progress(self, step: int, total_steps: int) -> None:
        """Show a progress bar over optimiser steps if the output is a terminal."""
        self._total_steps = total_steps
        self._bar = tqdm(
            total=total_steps,
            initial=step,
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

    def stop_progress(self) -> None:
        """Close the progress bar, leaving its last state visible."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def log_metrics(self, step: int, values: Mapping[str, float], *, console_summary: str | None = None) -> None:
        """Show the summary of the metrics: in the progress bar, or on a line of their own where there is none."""
        if console_summary is None:
            return
        if self._bar is not None and not self._bar.disable:
            self._bar.set_postfix_str(console_summary, refresh=False)
        else:
            LOGGER.info("step %*d/%d  %s", len(str(self._total_steps)), step, self._total_steps, console_summary)

    def close(self, *, failed: bool) -> None:
        """Close the progress bar and the log, and give the loggers back as they were."""
        self.stop_progress()
        level, LOGGER.propagate = self._logger_state
        LOGGER.setLevel(level)
        for handler in self._handlers:
            LOGGER.removeHandler(handler)
            handler.close()


@contextmanager
def without_repeated_notes() -> Iterator[None]:
    """Drop notes that were given before, in other runs too: the jobs of a sweep have most of them in common."""
    given: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        is_known = text in given
        given.add(text)
        return not is_known

    NOTES_LOGGER.addFilter(is_new)
    try:
        yield
    finally:
        NOTES_LOGGER.removeFilter(is_new)


class _LogFile(logging.FileHandler):
    """Raises what keeps it from writing, of which logging prints a traceback for every line."""

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
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()
