"""metrics.jsonl: a line of JSON for each step whose metrics are recorded."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from angle.files import sync, write_durably
from angle.tracking import sink
from angle.tracking.console import LOGGER
from angle.tracking.sink import RunInfo

METRICS_FILE = "metrics.jsonl"


class Sink(sink.Sink):
    """Appends to metrics.jsonl in the run folder, a line a call."""

    may_fail = False

    def __init__(self, run: RunInfo) -> None:
        """Set the path; the file appears with its first line."""
        self._path = run.folder / METRICS_FILE

    def rewind(self, step: int) -> None:
        """Drop the lines from that step on, the last test, which will be repeated, and lines that a crash damaged.


        All that precedes a checkpoint was synced before it, so damage is behind the lines that are kept.
        """
        if self._path.is_file():
            lines = self._path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
            values = [_parse(line) for line in lines]
            kept = [value is not None and value["step"] < step and not _is_last_test(value) for value in values]
            last = max((number for number, keep in enumerate(kept, 1) if keep), default=0)
            for number, value in enumerate(values[:last], 1):
                if value is None:
                    LOGGER.warning("Warning: line %d of %s is damaged and is left out", number, self._path)
            write_durably(self._path, "".join(line for line, keep in zip(lines, kept, strict=True) if keep))

    def log_metrics(self, step: int, values: Mapping[str, float], *, show: bool = False) -> None:
        """Append a line; non-finite numbers, which JSON cannot represent, become null."""
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **finite}, allow_nan=False) + "\n")

    def sync(self) -> None:
        """Write the lines out, and the name of the file."""
        if self._path.is_file():
            sync(self._path)
            sync(self._path.parent)


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Return the lines of a run folder's file."""
    file = run / METRICS_FILE
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True) if file.is_file() else []
    return [values for values in map(_parse, lines) if values is not None]


def _parse(line: str) -> dict[str, Any] | None:
    """Return the values of a line, None if it is damaged or cut short."""
    try:
        values = json.loads(line)
    except ValueError:
        return None
    return values if line.endswith("\n") and isinstance(values, dict) and isinstance(values.get("step"), int) else None


def _is_last_test(values: Mapping[str, Any]) -> bool:
    """Return whether a line has what is measured on the test set after training."""
    return values["step"] > 0 and any(name.startswith("test/") for name in values)
