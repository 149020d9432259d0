"""Signals to a run, through the real command: a checkpoint of the very step, and how to go on."""

from __future__ import annotations

import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import fork_server
import pytest
from conftest import REPO, launch_ranks, repeatable_metrics, sample_files, start
from safetensors.numpy import load_file

TEST = str(REPO / "tests" / "signalled.py")
SETTINGS = [
    "train.batch_size=8", "train.max_steps=7", "train.eval_steps=5", "train.save_steps=5", "train.logging_steps=3",
    "train.output_dir=run",
]  # fmt: skip


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and a run that nothing stopped; for reading."""
    folder = tmp_path_factory.mktemp("straight")
    done = start("train.py", *sample_files(folder), *SETTINGS, folder=folder)
    assert done.returncode == 0, done.stderr
    return folder


def signalled(signals: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Start the run anew, with signals while it takes the fourth step."""
    words = [TEST, f"{signals}@4", "train.py", *sample_files(folder), *SETTINGS]
    return fork_server.run(words, folder, fork_server.environment(), timeout=300)


def metrics(run: Path) -> list[dict[str, Any]]:
    return repeatable_metrics((run / "metrics.jsonl").read_text())


def checkpoints(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").glob("*"))


def assert_same_run(run: Path, expected: Path) -> None:
    assert metrics(run) == metrics(expected)
    weights, expected_weights = (load_file(folder / "final" / "model.safetensors") for folder in (run, expected))
    assert all((weights[name] == expected_weights[name]).all() for name in expected_weights)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_signal_ends_the_run_after_its_step_with_a_checkpoint(name: str, straight: Path, tmp_path: Path) -> None:
    done = signalled(name, tmp_path)
    assert (done.returncode, done.stderr) == (75, "")
    command = f"python {REPO / 'train.py'} train.resume=run"
    assert done.stdout.splitlines()[-2:] == [
        f"Stopped at step 4 by {name}; go on, from step 4, with", f"        {command}",
    ]  # fmt: skip
    assert checkpoints(tmp_path / "run") == ["step-00000004"]
    if name != "SIGTERM":
        return
    done = start("train.py", "train.resume=run", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "resume  at step 4" in done.stdout
    assert_same_run(tmp_path / "run", straight / "run")


@pytest.mark.parametrize(
    "names",
    ["SIGINT+SIGTERM", *(pytest.param(n, marks=pytest.mark.slow) for n in ("SIGTERM+SIGTERM", "SIGHUP+SIGINT"))],
)
def test_a_second_signal_ends_the_run_at_once(names: str, tmp_path: Path) -> None:
    assert signalled(names, tmp_path).returncode == 128 + getattr(signal, names.partition("+")[2])
    assert checkpoints(tmp_path / "run") == []


@pytest.mark.slow
def test_sigusr1_saves_and_goes_on(straight: Path, tmp_path: Path) -> None:
    done = signalled("SIGUSR1", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "step 4  saved, as SIGUSR1 asked" in done.stdout
    assert_same_run(tmp_path / "run", straight / "run")


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", ["train.gradient_accumulation_steps=2", "train.token_budget=100", "lora=r8", "data.streaming=true"]
)
def test_other_kinds_of_runs_end_after_a_whole_step(settings: str, tmp_path: Path) -> None:
    words = [TEST, "SIGTERM@4", "train.py", *sample_files(tmp_path), *SETTINGS, settings]
    done = fork_server.run(words, tmp_path, fork_server.environment(), timeout=300)
    assert done.returncode == 75, done.stderr
    step = 2 if "accumulation" in settings else 4
    assert checkpoints(tmp_path / "run") == [f"step-0000000{step}"]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_signal_to_one_rank_ends_all_of_them(name: str, rank: int, tmp_path: Path) -> None:
    words = [TEST, f"{name}@4", "train.py", *sample_files(tmp_path), *SETTINGS]
    ends = launch_ranks(words, tmp_path, SIGNALLED=str(rank))
    assert [end.returncode for end in ends] == [75, 75], ends[0].stderr
    assert "train.resume=run" in ends[0].stdout
    assert checkpoints(tmp_path / "run") == ["step-00000004"]


@pytest.mark.slow
@pytest.mark.parametrize(("moment", "step"), [("0", 0), ("end", 7)])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_rank_beside_the_steps_ends_all_of_them(
    rank: int, moment: str, step: int, straight: Path, tmp_path: Path
) -> None:
    words = [TEST, f"SIGTERM@{moment}", "train.py", *sample_files(tmp_path), *SETTINGS]
    ends = launch_ranks(words, tmp_path, SIGNALLED=str(rank))
    assert [(end.returncode, end.stderr) for end in ends] == [(75, "")] * 2
    assert f"Stopped at step {step} by " in ends[0].stdout
    ends = launch_ranks([str(REPO / "train.py"), "train.resume=run"], tmp_path)
    assert [(end.returncode, end.stderr) for end in ends] == [(0, "")] * 2


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_sigusr1_to_one_rank_saves_and_goes_on(rank: int, tmp_path: Path) -> None:
    words = [TEST, "SIGUSR1@4", "train.py", *sample_files(tmp_path), *SETTINGS, "train.save_total_limit=9"]
    ends = launch_ranks(words, tmp_path, SIGNALLED=str(rank))
    assert [end.returncode for end in ends] == [0, 0], ends[0].stderr
    assert "step 4  saved, as SIGUSR1 asked" in ends[0].stdout
    assert checkpoints(tmp_path / "run")[0] == "step-00000004"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "whom"), [("SIGTERM", "everyone"), ("SIGHUP", "launcher"), ("SIGINT", "launcher")])
def test_a_signal_to_the_launcher_ends_the_run_after_its_step(name: str, whom: str, tmp_path: Path) -> None:
    launcher = ["-m", "accelerate.commands.launch", "--config_file", f"{REPO}/conf/accelerate/cpu_two_processes.yaml"]
    words = [*launcher, TEST, f"{name}@4", "train.py", *sample_files(tmp_path), *SETTINGS]
    environment = fork_server.environment(SIGNALLED=whom)
    done = fork_server.run(words, tmp_path, environment, timeout=300)
    # The launcher passes a signal on some time later, so that without one of its own a rank takes further steps.
    (stopped,) = re.findall(r"Stopped at step (\d) by \w+; go on, from step \1, with\s+accelerate launch", done.stdout)
    assert checkpoints(tmp_path / "run")[-1] == f"step-0000000{stopped}"
    assert whom == "launcher" or stopped == "4"
    # The launcher's own, which nothing that it starts can change: docs/training.md says so.
    assert done.returncode == 1
    assert done.stderr.count("Traceback") == done.stderr.count("SignalException: ") == 1
