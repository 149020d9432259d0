"""Models and rows, and what identifies them and the code that trains on them."""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from angle.files import checksum
from benchmarks.throughput import prepare
from benchmarks.throughput.jobs import ANGLE_EMB, OWN, REPO, SBERT
from benchmarks.throughput.report import commit

#: What an identity is made of: so many digits of a SHA-256.
DIGITS = 16
#: What this project's results depend on, beside other packages.
OWN_CODE = ("angle", "conf")


class Inputs:
    """The files that all sides get, written into a folder when they are asked for."""

    def __init__(self, options: argparse.Namespace, scratch: Path) -> None:
        """Read nothing yet.

        Args:
            options: the options of the command line.
            scratch: an empty folder.

        """
        self._options, self._scratch = options, scratch
        self._written: dict[str, Path] = {}
        self._versions: dict[str, dict[str, str]] = {}

    @cached_property
    def model(self) -> Path:
        """The folder of the model that all sides start from."""
        return prepare.find_model(self._options.model)

    @cached_property
    def model_identity(self) -> str:
        """What the model's files are."""
        files = sorted(path for path in self.model.rglob("*") if path.is_file())
        return _identity(json.dumps([(str(path.relative_to(self.model)), checksum(path)) for path in files]))

    @cached_property
    def peer_python(self) -> str:
        """The interpreter of angle_emb's environment."""
        return prepare.peer_python()

    def python(self, system: str) -> str:
        """Return the interpreter of a system."""
        return self.peer_python if system == ANGLE_EMB else sys.executable

    def versions(self, system: str) -> dict[str, str]:
        """Return the versions that a system's results depend on; of this project, the commit of its code."""
        if system not in self._versions:
            self._versions[system] = (
                prepare.peer_versions(self.peer_python)
                if system == ANGLE_EMB
                else prepare.versions_here(*((SBERT,) if system == SBERT else ()))
            )
            if system == OWN:
                self._versions[system] |= {OWN: code_version()}
        return self._versions[system]

    def check_code(self) -> None:
        """End the benchmark if this project's code is another than at the start: runs would be of both."""
        if self.versions(OWN)[OWN] != code_version():
            sys.exit(f"{' or '.join(OWN_CODE)} changed since the start: start again, and let them be while it runs.")

    def rows(self, data_format: str, *, whole_labels: bool = False) -> Path:
        """Return the training rows of a format."""
        name = f"train-{data_format}{'-whole' * whole_labels}"
        if name not in self._written:
            source = self._options.stsb if data_format == "A" else self._options.nli
            rows = prepare.read_rows(source, "train", data_format)[: self._options.rows]
            self._write(name, with_whole_labels(rows) if whole_labels else rows)
        return self._written[name]

    def count(self, data_format: str) -> int:
        """Return the number of training rows of a format."""
        return len(self.rows(data_format).read_text(encoding="utf-8").splitlines())

    @property
    def valid(self) -> Path:
        """The pairs that choose learning rates."""
        if "valid" not in self._written:
            self._write("valid", prepare.read_rows(self._options.valid, "validation", "A"))
        return self._written["valid"]

    @property
    def tests(self) -> dict[str, Path]:
        """The held-out pairs by name."""
        for name, source in self._options.test.items():
            if f"test-{name}" not in self._written:
                self._write(f"test-{name}", prepare.read_rows(source, "test", "A"))
        found = {name: self._written[f"test-{name}"] for name in self._options.test}
        for name, path in found.items():
            if identity(path) == identity(self.valid):
                sys.exit(f"--test {name} has the rows of --valid, which choose learning rates: give other ones.")
        return found

    def _write(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        self._written[name] = self._scratch / f"{name}.jsonl"
        prepare.write_rows(self._written[name], [dict(row) for row in rows])


def with_whole_labels(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return rows whose labels above 0 are in (1, 2], in the same order, and the others 0.

    Cosine and angle terms only rank labels. The in-batch term finds its positives in labels above 0, and angle_emb
    finds the same ones if int() makes 1 of them: other whole numbers make positives of unrelated texts.
    """
    highest = max(row["label"] for row in rows)
    return [{**row, "label": 1 + 0.5 * row["label"] / highest if row["label"] > 0 else 0.0} for row in rows]


def in_order(rows: Path, seed: int, count: int) -> str:
    """Return `count` lines of a file, pass after pass, each pass in an order of its own by the seed."""
    lines = rows.read_text(encoding="utf-8").splitlines(keepends=True)
    source, found = random.Random(seed), list[str]()
    while len(found) < count:
        found += source.sample(lines, len(lines))
    return "".join(found[:count])


@cache
def identity(path: Path) -> str:
    """Return what a file's content is."""
    return _identity(path.read_text(encoding="utf-8"))


def _identity(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def code_version() -> str:
    """Return the last commit that changed this project's code, and what identifies changes that are not committed."""
    last = _git("log", "-1", "--format=%h", "--", *OWN_CODE)
    changes = _git("diff", "HEAD", "--", *OWN_CODE)
    changes += _git("ls-files", "--others", "--exclude-standard", "--", *OWN_CODE)
    return (last.strip() or commit()) + (f"-{_identity(changes)}" if changes else "")


def _git(*words: str) -> str:
    found = subprocess.run(["git", *words], cwd=REPO, capture_output=True, text=True, check=False)
    return found.stdout
