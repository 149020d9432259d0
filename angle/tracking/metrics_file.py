"""metrics.jsonl: a line of JSON for each step whose metrics are recorded."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

from angle.files import write_durably
from angle.tracking import sink
from angle.tracking.sink import RunInfo

METRICS_FILE = "metrics.jsonl"


class Sink(sink.Sink):
    """Appends to metrics.jsonl in the run folder, a line a call."""

    def __init__(self, run: RunInfo) -> None:
        """Set the path; the file appears with its first line."""
        self._path = run.folder / METRICS_FILE

    def rewind(self, step: int) -> None:
        """Drop the lines of later steps, and a last line that a kill cut short."""
        if self._path.is_file():
            lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
            write_durably(self._path, "".join(kept))

    def log_metrics(self, step: int, values: Mapping[str, float], *, console_summary: str | None = None) -> None:
        """Append a line; non-finite numbers, which JSON cannot represent, become null."""
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **finite}, allow_nan=False) + "\n")
