"""Sweeps whose jobs run in other processes: their tables, their lines, and processes that are lost."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from composition import CONF, composed
from conftest import REPO, sample_files, start, start_here
from fork_server import environment
from hydra import compose, initialize_config_dir
from omegaconf import open_dict

from angle.cli import launchers
from angle.cli.arguments import check_arguments
from angle.cli.jobs import JobRunner
from angle.cli.launchers import check_installed, labelled_lines
from angle.cli.sweeper import Sweeper
from angle.config import EvaluateConfig, TrainConfig
from angle.errors import ConfigError


def test_every_line_of_a_job_has_its_label(capsys: pytest.CaptureFixture[str]) -> None:
    with labelled_lines("[3]"):
        print("one\n\ntwo", end="")
        print(" three")
        print("error", file=sys.stderr)
        print("no end", end="")
    print("outside")
    assert capsys.readouterr() == ("[3] one\n[3]\n[3] two three\n[3] no end\noutside\n", "[3] error\n")


def test_a_launcher_that_is_not_installed_is_refused_with_the_line_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    check_installed("launcher", "joblib")
    check_installed("launcher", "none")
    monkeypatch.setattr(launchers, "find_spec", lambda _: None)
    for launcher, extra in (("joblib", "joblib"), ("submitit_local", "submitit"), ("submitit_slurm", "submitit")):
        with pytest.raises(ConfigError) as caught:
            check_installed("hydra/launcher", launcher)
        package = f"hydra-{extra}-launcher"
        assert str(caught.value) == (
            f"hydra/launcher={launcher} needs the package {package}: type pip install -e '.[{extra}]'."
        )


@pytest.mark.parametrize(
    ("launcher", "settings"),
    [
        ("joblib", {"n_jobs": -1}),
        ("submitit_local", {"timeout_min": 10080}),
        ("submitit_slurm", {"timeout_min": 720, "max_num_timeout": 10, "gpus_per_node": 1}),
    ],
)
def test_a_preset_chooses_a_launcher_of_hydra_s(launcher: str, settings: dict[str, Any]) -> None:
    assert composed(f"launcher={launcher}") == composed()  # it changes no setting of a run's
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", [f"launcher={launcher}"], return_hydra_config=True)
    assert config.hydra.runtime.choices["hydra/launcher"] == launcher
    assert {name: config.hydra.launcher[name] for name in settings} == settings


def test_launchers_are_for_sweeps_of_every_script(tmp_path: Path) -> None:
    check_arguments(["-m", "launcher=joblib", "tasks=[a.jsonl]"], EvaluateConfig, CONF)
    for word in ("launcher=joblib", "hydra/launcher=joblib"):
        done = start_here("train.py", word, folder=tmp_path)
        assert (done.returncode, done.stderr) == (
            1, f"Error: {word} launches the jobs of a sweep: add -m, or leave it out.\n"
        )  # fmt: skip


@pytest.mark.parametrize(
    ("processes", "params", "text"),
    [
        ("1", {"loss.ibn_w": "1,2"}, "hydra.sweeper in a preset is not supported: write what to choose from as"),
        ("2", None, "hydra/launcher=joblib cannot work in several processes"),
    ],
)
def test_a_sweep_that_would_go_round_the_checks_is_refused(
    monkeypatch: pytest.MonkeyPatch, processes: str, params: dict[str, str] | None, text: str
) -> None:
    composed()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", ["launcher=joblib"], return_hydra_config=True)
    with open_dict(config):
        config.hydra.sweeper.params = params
    monkeypatch.setenv("WORLD_SIZE", processes)
    sweeper = Sweeper(JobRunner[TrainConfig](lambda _: None, TrainConfig, set()), [], None)
    with pytest.raises(ConfigError, match=f"^{re.escape(text)}"):
        sweeper.setup(hydra_context=None, task_function=None, config=config)


def table_of(printed: str) -> list[list[str]]:
    """Return the words of the lines of a sweep's table."""
    lines = printed[printed.rindex("Spearman\n") :].splitlines()[1:]
    return [line.split() for line in lines[: lines.index("")]]


def killed(words: list[str], folder: Path, sign: str, whom: Callable[[psutil.Process], list[psutil.Process]]) -> str:
    """Start a command, kill some of its processes, and return what it prints.

    They are killed once the first job has failed, and the log of the second one has a sign.
    """
    record = folder / "sweep" / "sweep.json"
    log = folder / "sweep" / "train.batch_size-8" / "train.log"
    command = [sys.executable, str(REPO / "train.py"), *words]
    with subprocess.Popen(
        command, cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            until(lambda: record.exists() and '"status": "failed"' in record.read_text())
            until(lambda: log.exists() and sign in log.read_text())
            family = psutil.Process(process.pid).children(recursive=True)
            for victim in whom(psutil.Process(process.pid)):
                victim.kill()
            assert process.stdout is not None
            printed = process.stdout.read()
            _, alive = psutil.wait_procs([one for one in family if "loky" in " ".join(safe_cmdline(one))], timeout=20)
            assert not alive, "a job goes on without its sweep"
        finally:
            process.kill()
    return f"{printed}\nexit code {process.returncode}"


def safe_cmdline(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def until(is_so: Callable[[], bool]) -> None:
    for _ in range(2400):
        if is_so():
            return
        time.sleep(0.1)
    raise AssertionError("it took over four minutes")


def workers(of: str) -> Callable[[psutil.Process], list[psutil.Process]]:
    """Return what finds the processes that run jobs, by a part of their command lines."""
    return lambda parent: [child for child in parent.children(recursive=True) if of in " ".join(safe_cmdline(child))]


@pytest.mark.slow
def test_joblib_runs_jobs_side_by_side_and_survives_a_lost_process(tmp_path: Path) -> None:
    words = ["-m", *sample_files(tmp_path), "launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweep.dir=sweep"]
    words += ["train.batch_size=1,8", "train.max_steps=300", "train.save_steps=20", "train.eval_steps=100"]
    printed = killed(words, tmp_path, "step  20/", lambda parent: [parent])
    assert printed.endswith(f"exit code {-signal.SIGKILL}")
    jobs = [line for line in printed.splitlines() if re.search(r"Job \d|step +\d|model ", line)]
    assert len(jobs) > 5
    assert all(line.startswith(("[1] ", "[2] ")) for line in jobs)

    printed = killed(words, tmp_path, "resume  at step ", workers("popen_loky"))
    assert "Warning: joblib has lost a process; its other jobs are tried again, one at a time." in printed
    assert "[2] resume  at step " in printed
    assert "[1] Error: train.batch_size=1 leaves a row no other row" in printed
    assert table_of(printed)[0] == ["train.batch_size=1", "failed"]
    assert table_of(printed)[1][-1] == "best"
    assert printed.endswith("exit code 1")
    record = json.loads((tmp_path / "sweep" / "sweep.json").read_text())["jobs"]
    assert {job["settings"]["train.batch_size"]: job["status"] for job in record} == {"1": "failed", "8": "finished"}


@pytest.mark.slow
def test_submitit_waits_for_all_jobs_and_names_those_that_are_lost(tmp_path: Path) -> None:
    words = ["-m", *sample_files(tmp_path), "launcher=submitit_local", "hydra.sweep.dir=sweep"]
    words += ["train.batch_size=1,8", "train.max_steps=300", "train.save_steps=20", "train.eval_steps=100"]
    printed = killed(words, tmp_path, "step  80/", workers("submitit.core._submit"))
    assert "All 2 jobs have failed." in printed
    assert "failed  train.batch_size=1: train.batch_size=1 leaves a row no other row" in printed
    assert "failed  train.batch_size=8: its process ended before it did (Job " in printed
    assert "has not produced any output (state: " in " ".join(printed.split())
    assert printed.endswith("exit code 1")

    done = start("train.py", *words, folder=tmp_path)
    assert done.returncode == 1
    assert table_of(done.stdout)[0] == ["train.batch_size=1", "failed"]
    assert table_of(done.stdout)[1][-1] == "best"
    assert "resume  at step " in (tmp_path / "sweep" / "train.batch_size-8" / "train.log").read_text()
    assert not [line for line in done.stdout.splitlines() if "step " in line]
    assert os.path.exists(tmp_path / "sweep" / "sweep.csv")
