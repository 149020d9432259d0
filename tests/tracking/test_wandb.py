"""Weights & Biases in its offline mode, read back with its own tool, and the variable that overrides the mode."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import faulty_server
import pytest
from conftest import sample_files, start

from angle import ConfigError, TrainConfig, build_config, fit
from angle.config import TrackingConfig
from angle.tracking.sink import dashboard_name
from angle.tracking.tracker import apply_environment
from angle.tracking.wandb import tracking_mode


def read_back(log: Path) -> list[dict[str, Any]]:
    """Return the records of a run by the tool of Weights & Biases."""
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(log)]
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def test_offline_run_holds_settings_and_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    folder = tmp_path / "run"
    fit(
        build_config(
            {
                "train": {"max_steps": 4, "batch_size": 8, "logging_steps": 2, "output_dir": str(folder)},
                "tracking": {
                    "mode": "offline",
                    "project": "meadow",
                    "name": "first",
                    "tags": ["tiny", "test"],
                    "model": True,
                },
                "data_format": {"graded": False},
            },
            TrainConfig,
        )
    )

    (log,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    records = read_back(log)
    run = next(record["run"] for record in records if record["type"] == "run")
    assert (run["project"], run["display_name"], run["tags"]) == ("meadow", "first", ["tiny", "test"])
    assert run["job_type"] == "train"
    assert run["config"]["update"]["loss"]["ibn_tau"] == 20.0
    items = [record["history"]["item"] for record in records if record["type"] == "history"]
    table = next(item for item in items if "nearest neighbours._type" in item)
    assert table["nearest neighbours._type"] == "html-file"
    page = (log.parent / "files" / table["nearest neighbours.path"]).read_text()
    assert "<tr><th>text</th><th>before training</th><th>after training</th></tr>" in page
    assert page.count("<tr>") == 9
    histograms = [item for item in items if any(name.startswith("similarity/") for name in item)]
    assert {item["step"] for item in histograms} == {0, 4}
    assert all(item["similarity/label 3.33 to 5._type"] == "histogram" for item in histograms)
    history = [item for item in items if item is not table and item not in histograms]
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    named = [{name if name == "step" else dashboard_name(name): line[name] for name in line} for line in metrics]
    assert [{key: item[key] for key in line} for item, line in zip(history, named, strict=True)] == named
    assert {name.partition("/")[0] for line in named for name in line} == {"step", "train", "valid", "test", "system"}
    assert {"train/loss", "train/ibn", "train/learning_rate", "system/texts_per_second"} <= named[2].keys()
    assert {"loss", "loss/cosine", "loss/ibn", "loss/angle", "learning_rate", "gradient_norm", "texts_per_second",
            "padding_share", "epoch"} <= metrics[2].keys()  # fmt: skip
    assert [line["step"] for line in metrics if "valid/spearman" in line] == [0, 4]
    record = json.loads((folder / "run.json").read_text())
    assert record["wandb_id"] == run["run_id"]
    updates = [one["summary"]["update"] for one in records if one["type"] == "summary"]
    (summary,) = (update for update in updates if "best" in update)
    assert summary["best"] == {"spearman": record["result"]["best_score"], "step": 4}
    assert summary["first"]["spearman"] == history[0]["valid/spearman"]
    artifacts = [one["artifact"] for one in records if one["type"] == "artifact"]
    assert [one["name"] for one in artifacts if one["type"] == "model"] == [f"{run['run_id']}-model"]
    shown = capsys.readouterr().out
    where = shlex.quote(str(log.parent))
    assert f"type\n        wandb sync {where}\n        wandb leet {where}\n" in shown


def test_environment_wins_over_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert tracking_mode("online") == "offline"
    monkeypatch.setenv("WANDB_MODE", "sometimes")
    with pytest.raises(
        ConfigError, match=r"^WANDB_MODE=sometimes is not known. Choose one of: disabled, online, offline.$"
    ):
        tracking_mode("online")


@pytest.mark.parametrize(
    ("variable", "setting", "sinks"),
    [("", "disabled", []), ("", "offline", ["wandb"]), ("offline", "disabled", ["wandb"]), ("disabled", "online", [])],
)
def test_wandb_mode_decides_whether_there_is_a_sink(
    monkeypatch: pytest.MonkeyPatch, variable: str, setting: str, sinks: list[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", variable)
    assert apply_environment(TrackingConfig(mode=setting)).sinks == sinks
    assert apply_environment(TrackingConfig(mode=setting, tensorboard=True)).sinks == [*sinks, "tensorboard"]


SLOW_FAULTS = ("refuses", "resets", "redirects for ever", "answers for ever", "429 for an hour", "nothing")


@pytest.mark.parametrize("fault", ["hangs", *(pytest.param(fault, marks=pytest.mark.slow) for fault in SLOW_FAULTS)])
def test_a_faulty_server_costs_seconds_and_the_run_is_recorded_offline(tmp_path: Path, fault: str) -> None:
    words = [*sample_files(tmp_path), "train.batch_size=8", "train.max_steps=2", "train.output_dir=run"]
    with faulty_server.serve(fault) as url:
        env = {"WANDB_BASE_URL": url, "WANDB_API_KEY": "0123456789" * 4, "WANDB_MODE": "", "NO_PROXY": "127.0.0.1"}
        begin = time.monotonic()
        done = start("train.py", *words, "tracking=online", "tracking.timeout=1", folder=tmp_path, **env)
        assert time.monotonic() - begin < 40
    assert done.returncode == 0
    (warning,) = re.findall(r"^Warning: Weights & Biases .*$", done.stdout, re.MULTILINE)
    (log,) = (tmp_path / "run").glob("wandb/offline-run-*")
    assert warning.endswith(
        f"so the run is recorded offline; to send it later, type wandb sync {log.relative_to(tmp_path)}"
    )
    assert "Traceback" not in done.stderr
    assert (tmp_path / "run" / "final").exists()


@pytest.mark.slow
def test_jobs_of_a_sweep_are_one_group(tmp_path: Path) -> None:
    words = [*sample_files(tmp_path), "train.batch_size=8", "train.max_steps=2", "hydra.sweep.dir=found"]
    done = start("train.py", "-m", *words, "train.seed=1,2", "tracking=offline", folder=tmp_path, WANDB_MODE="")
    assert done.returncode == 0, done.stderr
    for seed in (1, 2):
        (log,) = (tmp_path / "found" / f"train.seed-{seed}").glob("wandb/offline-run-*/run-*.wandb")
        (run,) = (one["run"] for one in read_back(log) if one["type"] == "run")
        assert run["run_group"] == "found"
