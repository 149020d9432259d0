"""The launcher's environment: what is read from it, where, and what is written for it."""

from __future__ import annotations

import json
import re

import pytest
from conftest import REPO

from angle.distributed import environment

#: Variables that torchrun and accelerate launch set.
VARIABLES = r"""["'](WORLD_SIZE|RANK|LOCAL_RANK|LOCAL_WORLD_SIZE|MASTER_\w+|TORCHELASTIC_\w+)["']"""


def test_only_one_package_reads_the_launcher_environment():
    package = REPO / "angle"
    readers = {path for path in package.rglob("*.py") if re.search(VARIABLES, path.read_text(encoding="utf-8"))}
    assert readers == {package / "distributed" / "environment.py"}


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, (1, True, True, False)),
        ({"WORLD_SIZE": "4", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "4"}, (4, True, True, False)),
        ({"WORLD_SIZE": "4", "RANK": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}, (4, False, True, True)),
        ({"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, (4, False, False, True)),
    ],
    ids=["alone", "one machine", "main process of a second machine", "last process"],
)
def test_rank_and_world_size_from_the_environment(monkeypatch, variables, expected):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert expected == (
        environment.world_size(),
        environment.is_main_process(),
        environment.is_local_main_process(),
        environment.is_multi_node(),
    )


def test_a_failure_is_reported_to_torchrun(monkeypatch, tmp_path):
    environment.report_failure("nobody listens")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    environment.report_failure("what went wrong")
    assert json.loads((tmp_path / "error.json").read_text())["message"] == "what went wrong"


@pytest.mark.parametrize(
    ("running", "expected"),
    [("train.py", "evaluate.py"), ("/a b/train.py", "'/a b/evaluate.py'"), ("/usr/bin/angle-trainer", "evaluate.py")],
)
def test_a_script_is_beside_the_running_one(monkeypatch, running, expected):
    monkeypatch.setattr("sys.argv", [running])
    assert environment.script_command("evaluate.py") == expected
