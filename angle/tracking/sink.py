"""The interface of a sink, which records a run in one place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from angle.config import TrackingConfig

#: Metrics that are about time and memory.
SYSTEM_METRICS = frozenset({"texts_per_second", "padding_share", "memory_gib", "texts"})


@dataclass(frozen=True)
class RunInfo:
    """What a sink may want to know about the run that it records."""

    folder: Path
    tracking: TrackingConfig
    settings: dict[str, Any]
    """All settings of the run, nested as in config.yaml."""
    metadata: Mapping[str, Any]
    """The content of run.json; in a resumed run this includes what its sinks returned as `run_metadata`."""


def dashboard_name(name: str) -> str:
    """Return the name of a metric where names are grouped by what comes before the first slash.

    train/ has what training minimises and is controlled by, system/ how fast it is; valid/ and test/ stay.
    """
    if name.startswith(("valid/", "test/")):
        return name
    return f"system/{name}" if name in SYSTEM_METRICS else f"train/{name.removeprefix('loss/')}"


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

    def log_histograms(self, step: int, values: Mapping[str, npt.NDArray[np.floating]]) -> None:
        """Record how several kinds of values are spread, by their names."""

    def log_table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Record a table of texts."""

    def log_summary(self, values: Mapping[str, Mapping[str, float]]) -> None:
        """Record what a run that has ended is known by: its first, best, last and test scores, by their names."""

    def log_model(self, folder: Path) -> None:
        """Record the model of a run that has ended."""

    def show_best(self, score: str) -> None:
        """Show the best score so far beside the progress."""

    def sync(self) -> None:
        """Make what was recorded so far survive a power cut: a checkpoint is about to be written."""

    def close(self, *, failed: bool) -> None:
        """Complete the record of a run that has ended."""
