"""The interface of a sink, which records a run in one place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from angle.config import TrackingConfig


@dataclass(frozen=True)
class RunInfo:
    """What a sink may want to know about the run that it records."""

    folder: Path
    tracking: TrackingConfig
    settings: dict[str, Any]
    """All settings of the run, nested as in config.yaml."""
    metadata: Mapping[str, Any]
    """The content of run.json; in a resumed run this includes what its sinks returned as `run_metadata`."""


class Sink:
    """Records a run in one place. Subclasses override the calls that concern them; the others do nothing."""

    may_fail = True
    """Whether the run goes on without it if it cannot record any more."""

    def __init__(self, run: RunInfo) -> None:
        """Open the sink. `rewind` is called before any metrics are recorded."""

    @classmethod
    def check(cls, config: TrackingConfig) -> None:
        """Raise ConfigError, before training, if the sink could not be opened with these settings."""

    def run_metadata(self) -> dict[str, Any]:
        """Return what run.json should hold so that a resumed run continues the same record."""
        return {}

    def rewind(self, step: int) -> None:
        """Forget what was recorded from `step` on: the run is about to record it, perhaps again."""

    def info(self, text: str) -> None:
        """Record a message."""

    def header(self, label: str, text: str) -> None:
        """Record what is known of the run before it starts, such as advice on its settings."""

    def warning(self, text: str) -> None:
        """Record a warning."""

    def start_progress(self, step: int, total_steps: int) -> None:
        """Note that training starts, `step` of `total_steps` optimiser steps being done."""

    def advance(self) -> None:
        """Count an optimiser step."""

    def stop_progress(self) -> None:
        """Note that training has stopped."""

    def log_metrics(self, step: int, values: Mapping[str, float], *, show: bool = False) -> None:
        """Record a step's metrics, and with `show`, show them to who waits for the run."""

    def show_best(self, score: str) -> None:
        """Show the best score so far beside the progress."""

    def sync(self) -> None:
        """Make what was recorded so far survive a power cut: a checkpoint is about to be written."""

    def close(self, *, failed: bool) -> None:
        """Complete the record of a run that has ended."""
