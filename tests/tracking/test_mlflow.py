"""MLflow, read back with its own client: the same numbers as metrics.jsonl, one run also after a resume."""

from __future__ import annotations

import importlib.util
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from conftest import dying_at
from mlflow.tracking import MlflowClient

from angle import ConfigError, TrainConfig, build_config, fit
from angle.config import TrackingConfig
from angle.tracking.sink import dashboard_name
from angle.tracking.tracker import check_sinks


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MlflowClient]:
    """Record in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    mlflow.set_tracking_uri(uri)
    yield MlflowClient()
    mlflow.set_tracking_uri(None)


def settings(folder: Path) -> TrainConfig:
    train = {"max_steps": 4, "batch_size": 4, "logging_steps": 1, "save_steps": 2, "output_dir": str(folder)}
    tracking = {"mlflow": True, "project": "of a test", "tags": ["small"], "model": True}
    return build_config({"train": train, "tracking": tracking}, TrainConfig)


@pytest.mark.slow
def test_a_resumed_run_is_one_run(tmp_path: Path, client: MlflowClient) -> None:
    folder = tmp_path / "run"

    def runs() -> list[mlflow.entities.Run]:
        experiment = client.get_experiment_by_name("of a test")
        return list(client.search_runs([experiment.experiment_id]))

    with dying_at(4):
        fit(settings(folder))
    (stopped,) = runs()
    assert stopped.info.status == "FAILED"
    result = fit(settings(folder))

    (run,) = runs()
    assert (run.info.run_id, run.info.status, run.info.run_name) == (stopped.info.run_id, "FINISHED", "run")
    assert run.data.tags["small"] == "true"
    assert run.data.params["train.batch_size"] == "4"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for name in ("loss", "loss/cosine", "learning_rate", "valid/spearman"):
        history = client.get_metric_history(run.info.run_id, dashboard_name(name))
        last = {metric.step: metric.value for metric in history}  # a step that was repeated is there twice
        assert last == {line["step"]: line[name] for line in lines if name in line}
    assert run.data.metrics["best.spearman"] == result.best_score
    assert "model/model.safetensors" in [file.path for file in client.list_artifacts(run.info.run_id, "model")]


@pytest.mark.slow
def test_a_run_goes_on_without_a_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{reserved.getsockname()[1]}")
        mlflow.set_tracking_uri(None)
        result = fit(settings(tmp_path / "run"))
    assert (result.folder / "final").is_dir()
    assert capsys.readouterr().out.count("mlflow has failed, and records no more of this run: ") == 1


def test_a_missing_package_is_named_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    check_sinks(TrackingConfig(mlflow=True))
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "mlflow" else find_spec(name))
    with pytest.raises(ConfigError) as error:
        check_sinks(TrackingConfig(mlflow=True))
    assert str(error.value) == (
        "tracking.mlflow=true needs the package mlflow: type pip install -e '.[mlflow]', or leave it out."
    )
