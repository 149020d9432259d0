"""Crashes: a few of all those that `python tests/crashes.py` and `python tests/kills.py 30` try."""

from __future__ import annotations

from pathlib import Path

import fork_server
import pytest
from conftest import REPO

pytestmark = pytest.mark.slow


def test_a_run_survives_crashes(tmp_path: Path) -> None:
    words = [str(REPO / "tests" / "crashes.py"), "5/29", "plain"]
    done = fork_server.run(words, tmp_path, fork_server.environment(), timeout=300)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "bitwise" in done.stdout


def test_killed_runs_of_one_and_two_processes_go_on(tmp_path: Path) -> None:
    words = [str(REPO / "tests" / "kills.py"), "2"]
    done = fork_server.run(words, tmp_path, fork_server.environment(), timeout=300)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert done.stdout.endswith("2 of 2 bitwise\n")
