"""TensorBoard: the metrics and settings of a run as event files, which `tensorboard --logdir RUN` shows."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from angle.config import TrackingConfig
from angle.errors import ConfigError
from angle.tracking import sink
from angle.tracking.sink import RunInfo, dashboard_name

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

#: Sub-folder of the run folder that holds the event files; each start of a run adds one.
FOLDER = "tensorboard"


class Sink(sink.Sink):
    """Scalars grouped as `dashboard_name` says, histograms, and the settings and tables as texts."""

    def __init__(self, run: RunInfo) -> None:
        """Load the writer; its file is opened by `rewind`, which knows where the run starts."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer_class, self._run = SummaryWriter, run
        self._writer: SummaryWriter | None = None

    @classmethod
    def check(cls, config: TrackingConfig) -> None:
        """Raise ConfigError if the package is missing."""
        if importlib.util.find_spec("tensorboard") is None:
            raise ConfigError(
                "tracking.tensorboard=true needs the package tensorboard: type pip install tensorboard, or leave it "
                "out."
            )

    def rewind(self, step: int) -> None:
        """Open a new event file, which tells TensorBoard to hide what earlier ones have of steps to come."""
        self._writer = self._writer_class(str(self._run.folder / FOLDER), purge_step=step)
        settings = json.dumps(self._run.settings, indent=2, default=str)
        self._writer.add_text("settings", f"```json\n{settings}\n```", max(step - 1, 0))

    def log_metrics(self, step: int, values: Mapping[str, float], *, show: bool = False) -> None:
        """Write a step's metrics as scalars."""
        assert self._writer is not None
        for name, value in values.items():
            self._writer.add_scalar(dashboard_name(name), value, step)

    def log_histograms(self, step: int, values: Mapping[str, npt.NDArray[np.floating]]) -> None:
        """Write histograms."""
        assert self._writer is not None
        for name, of_kind in values.items():
            self._writer.add_histogram(name, of_kind, step)

    def log_table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Write a table as a text, in Markdown."""
        assert self._writer is not None
        lines = [columns, ["---"] * len(columns), *rows]
        cells = ([cell.replace("|", "\\|") for cell in line] for line in lines)
        self._writer.add_text(name, "\n".join(f"| {' | '.join(line)} |" for line in cells), step)

    def close(self, *, failed: bool) -> None:
        """Write out what is still in memory."""
        if self._writer is not None:
            self._writer.close()
