"""TensorBoard: the metrics and settings of a run as event files, which `tensorboard --logdir RUN` shows."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from angle.config import TrackingConfig
from angle.errors import ConfigError
from angle.tracking import sink
from angle.tracking.sink import RunInfo

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

#: Sub-folder of the run folder that holds the event files; each start of a run adds one.
FOLDER = "tensorboard"


class Sink(sink.Sink):
    """Scalars named as in metrics.jsonl, so that a slash groups them, and the settings as a text."""

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
            self._writer.add_scalar(name, value, step)

    def close(self, *, failed: bool) -> None:
        """Write out what is still in memory."""
        if self._writer is not None:
            self._writer.close()
