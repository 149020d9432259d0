"""The sinks of a run as one: opened together, called together, closed together."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from angle.config import TrackingConfig
from angle.errors import first_line
from angle.tracking import console, metrics_file
from angle.tracking.sink import RunInfo, Sink
from angle.tracking.wandb import tracking_mode


class Tracker:
    """A container of sinks: a call goes to each. Without any, as on all processes but the main one, it does nothing."""

    def __init__(self) -> None:
        """Start without a sink."""
        self.sinks: list[Sink] = []
        self._failed: list[Sink] = []

    def run_metadata(self) -> dict[str, Any]:
        """Return what run.json should hold so that a resumed run continues the same records."""
        return {name: value for sink in self.sinks for name, value in sink.run_metadata().items()}

    def rewind(self, step: int) -> None:
        """Forget what was recorded from `step` on: the run is about to record it, perhaps again."""
        for sink in self.sinks:
            sink.rewind(step)

    def info(self, text: str) -> None:
        """Print and log a message."""
        for sink in self.sinks:
            sink.info(text)

    def header(self, label: str, text: str) -> None:
        """Print and log what is known of the run before it starts; in a sweep it is printed once if it is the same."""
        for sink in self.sinks:
            sink.header(label, text)

    def warning(self, text: str) -> None:
        """Print and log a warning."""
        for sink in self.sinks:
            sink.warning(text)

    def start_progress(self, step: int, total_steps: int) -> None:
        """Show the progress of training, from `step` on."""
        for sink in self.sinks:
            sink.start_progress(step, total_steps)

    def advance(self) -> None:
        """Count an optimiser step."""
        for sink in self.sinks:
            sink.advance()

    def stop_progress(self) -> None:
        """Leave the last state of the progress visible."""
        for sink in self.sinks:
            sink.stop_progress()

    def log_metrics(self, step: int, values: Mapping[str, float], *, show: bool = False) -> None:
        """Record a step's metrics; with `show`, show them on the console too."""
        self._record(lambda sink: sink.log_metrics(step, values, show=show))

    def log_histograms(self, step: int, values: Mapping[str, npt.NDArray[np.floating]]) -> None:
        """Record how several kinds of values are spread, by their names."""
        self._record(lambda sink: sink.log_histograms(step, values))

    def log_table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Record a table of texts."""
        self._record(lambda sink: sink.log_table(step, name, columns, rows))

    def log_summary(self, values: Mapping[str, Mapping[str, float]]) -> None:
        """Record what a run that has ended is known by."""
        self._record(lambda sink: sink.log_summary(values))

    def log_model(self, folder: Path) -> None:
        """Record the model of a run that has ended."""
        self._record(lambda sink: sink.log_model(folder))

    def _record(self, record: Callable[[Sink], object]) -> None:
        """Record something in each sink; one that fails is left out from then on, unless the run needs it."""
        for sink in self.sinks:
            if sink in self._failed:
                continue
            try:
                record(sink)
            except Exception as problem:  # of a library, a server or a disk
                if not sink.may_fail:
                    raise
                self._failed.append(sink)
                self.warning(f"{_name(sink)} has failed, and records no more of this run: {first_line(problem)}.")

    def show_best(self, score: str) -> None:
        """Show the best score so far beside the progress."""
        for sink in self.sinks:
            sink.show_best(score)

    def sync(self) -> None:
        """Make what was recorded so far survive a power cut."""
        for sink in self.sinks:
            sink.sync()

    def _close_last(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the last sink as a context's exit; a failure is only reported, since the run's result matters more."""
        sink = self.sinks.pop()
        try:
            sink.close(failed=error_type is not None)
        except Exception as problem:
            if sink not in self._failed:
                self.warning(
                    f"{_name(sink)} could not be closed, so its last values may be missing: {first_line(problem)}."
                )


def _name(sink: Sink) -> str:
    return type(sink).__module__.rpartition(".")[2]


def apply_environment(config: TrackingConfig) -> TrackingConfig:
    """Return the settings that hold once environment variables have overridden them.

    Raises:
        ConfigError: a variable has an unknown value.

    """
    return dataclasses.replace(config, mode=tracking_mode(config.mode))


def check_sinks(config: TrackingConfig) -> None:
    """Raise ConfigError if a sink could not be opened: a package or a key is missing."""
    for name in config.sinks:
        _sink_class(name).check(config)


@contextmanager
def open_tracker(run: RunInfo, *, is_main: bool) -> Iterator[Tracker]:
    """Open the sinks of a run, on the main process only, and close them, the last one first.

    If one cannot be opened, those before it are closed. Each is told whether the run failed.
    """
    tracker = Tracker()
    with ExitStack() as stack:
        if is_main:
            # The console is opened first and so closed last: it can report that another sink could not be closed.
            always: list[type[Sink]] = [console.Sink, metrics_file.Sink]
            for sink_class in always + [_sink_class(name) for name in run.tracking.sinks]:
                tracker.sinks.append(sink_class(run))
                stack.push(tracker._close_last)
        yield tracker


def _sink_class(name: str) -> type[Sink]:
    """Return the class `Sink` of a module in this package, which the settings name."""
    sink_class: type[Sink] = import_module(f"angle.tracking.{name}").Sink
    return sink_class
