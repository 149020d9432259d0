"""Crashes after changes of the disk: a few of them, of which `python tests/crashes.py` tries all."""

from __future__ import annotations

import os
from pathlib import Path

import fork_server
from conftest import REPO


def test_a_run_survives_crashes(tmp_path: Path) -> None:
    words = [str(REPO / "tests" / "crashes.py"), "5/29", "plain"]
    done = fork_server.run(words, tmp_path, os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "bitwise" in done.stdout
