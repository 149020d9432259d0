"""Weights & Biases in its offline mode, read back with its own tool, and the variable that overrides the mode."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import faulty_server
import pytest
from conftest import sample_files, start

from angle import ConfigError, TrainConfig, build_config, fit
from angle.config import TrackingConfig
from angle.tracking.tracker import apply_environment
from angle.tracking.wandb import tracking_mode


def test_offline_run_holds_settings_and_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    folder = tmp_path / "run"
    fit(
        build_config(
            {
                "train": {"max_steps": 4, "batch_size": 8, "logging_steps": 2, "output_dir": str(folder)},
                "tracking": {"mode": "offline", "project": "meadow", "name": "first", "tags": ["tiny", "test"]},
            },
            TrainConfig,
        )
    )

    (log,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(log)]
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    records = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    run = next(record["run"] for record in records if record["type"] == "run")
    assert (run["project"], run["display_name"], run["tags"]) == ("meadow", "first", ["tiny", "test"])
    history = [record["history"]["item"] for record in records if record["type"] == "history"]
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [{key: item[key] for key in line} for item, line in zip(history, metrics, strict=True)] == metrics
    assert {"loss", "loss/cosine", "loss/ibn", "loss/angle", "learning_rate", "gradient_norm", "texts_per_second",
            "padding_share", "epoch"} <= metrics[2].keys()  # fmt: skip
    assert [line["step"] for line in metrics if "valid/spearman" in line] == [0, 4]
    assert json.loads((folder / "run.json").read_text())["wandb_id"] == run["run_id"]


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
