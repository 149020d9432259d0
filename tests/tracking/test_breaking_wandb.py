"""A server of Weights & Biases that breaks in the middle of a run, or is away when one resumes: nothing is lost."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import fork_server
import pytest
import wandb_server
from conftest import REPO, sample_files, start
from wandb_server import Server

from angle.tracking.sink import dashboard_name

pytestmark = pytest.mark.slow
TIMEOUT = 2
SETTINGS = ["train.batch_size=4", "train.logging_steps=1", "train.epochs=50", "train.output_dir=run"]
SETTINGS += ["tracking=online", f"tracking.timeout={TIMEOUT}"]


@pytest.fixture
def server() -> Iterator[Server]:
    with wandb_server.serve() as server:
        yield server


def sync(command: str, folder: Path, server: Server) -> None:
    """Type a command that a run has said, when the server is there again."""
    program, *words = shlex.split(command)
    environment = os.environ | server.environment() | {"WANDB_MODE": "online"}
    words = [str(Path(sys.executable).with_name(program)), *words]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
    assert "Finished syncing" in done.stdout + done.stderr, done.stderr


def assert_nothing_lost(run: Path, server: Server) -> None:
    """Check that the server has every line of metrics.jsonl, of which it may have some twice."""
    (history,) = server.history
    sent = [line for line in server.metrics(history) if not any("neighbours" in n or "similarity" in n for n in line)]
    recorded = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines = [{name if name == "step" else dashboard_name(name): line[name] for name in line} for line in recorded]
    assert [line for line in lines if line not in sent] == [line for line in sent if line not in lines] == []


@pytest.mark.parametrize(("fault", "steps"), [("hangs", 3), ("JSON of another kind", 3), ("JSON of another kind", 300)])
def test_a_server_that_breaks_in_the_middle(server: Server, fault: str, steps: int, tmp_path: Path) -> None:
    server.fault, server.breaks_at = fault, "/file_stream"
    words = [*sample_files(tmp_path), *SETTINGS, f"train.max_steps={steps}", "train.eval_steps=300"]
    done = start("train.py", *words, folder=tmp_path, **server.environment())
    assert done.returncode == 0, done.stderr
    assert server.broken
    assert "Traceback" not in done.stderr
    (command,) = re.findall(r"^Warning: Weights .* to send it later, type (.*)$", done.stdout, re.MULTILINE)
    server.fault, server.broken = None, False
    sync(command, tmp_path, server)
    assert_nothing_lost(tmp_path / "run", server)


@pytest.mark.parametrize("away", ["first", "second"])
def test_a_resumed_run_whose_server_was_away(server: Server, away: str, tmp_path: Path) -> None:
    words, commands = [*sample_files(tmp_path), *SETTINGS, "train.max_steps=6"], []
    for part in ("first", "second"):
        server.fault, server.broken = ("hangs" if away == part else None), False
        script = [str(REPO / "tests" / "signalled.py"), "SIGTERM@3"] if part == "first" else []
        begin = time.monotonic()
        command = [*script, "train.py" if script else str(REPO / "train.py"), *words]
        environment = fork_server.environment(**server.environment())
        done = fork_server.run(command, tmp_path, environment, timeout=60)
        assert done.returncode == (75 if part == "first" else 0), done.stderr
        assert time.monotonic() - begin < 15 + TIMEOUT
        assert done.stdout.count("Warning: Weights & Biases") == (server.fault is not None)
        commands += re.findall(r"^ +(wandb sync .*)$", done.stdout, re.MULTILINE)
    server.fault, server.broken = None, False
    for command in commands:
        sync(command, tmp_path, server)
    assert_nothing_lost(tmp_path / "run", server)
