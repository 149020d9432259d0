"""What is measured already: a file with a line of JSON for each run that ended."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from angle.files import make_folder, try_lock, write_durably

Settings = Mapping[str, Any]


class Records:
    """The records of a file, each with everything that determines it."""

    def __init__(self, path: Path) -> None:
        """Read the file, if there is one."""
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self._records: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
                self._records[_key(record["settings"])] = record
            except (ValueError, TypeError, KeyError):
                sys.exit(f"{path}, line {number}, is no record of this benchmark: give another --results file.")

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Iterate over the records, oldest first."""
        return iter(list(self._records.values()))  # another thread may add one

    def find(self, settings: Settings) -> dict[str, Any] | None:
        """Return the record of these settings; None if there is none."""
        return self._records.get(_key(settings))

    def add(self, settings: Settings, **found: Any) -> None:
        """Add a record, on the disk too: a crash leaves the file with it or without it."""
        with self._lock:
            self._records[_key(settings)] = {"settings": settings, **found}
            write_durably(self.path, "".join(json.dumps(record) + "\n" for record in self))


@contextmanager
def locked(path: Path) -> Iterator[Records]:
    """Open the records for writing; another process that has them ends this one with a message."""
    make_folder(path.parent)
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        if not try_lock(lock):
            sys.exit(f"--results {path} is in use by another process: wait for it, or give another file.")
        yield Records(path)


def _key(settings: Settings) -> str:
    return json.dumps(settings, sort_keys=True)
