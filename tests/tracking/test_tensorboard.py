"""TensorBoard's event files, read back with its own reader: the same numbers as metrics.jsonl, also after a resume."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import dying_at
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from angle import ConfigError, TrainConfig, build_config, fit
from angle.config import TrackingConfig
from angle.tracking import tensorboard
from angle.tracking.sink import RunInfo, dashboard_name
from angle.tracking.tracker import check_sinks


def settings(folder: Path) -> TrainConfig:
    train = {"max_steps": 6, "batch_size": 4, "logging_steps": 1, "save_steps": 2, "output_dir": str(folder)}
    return build_config({"train": train, "tracking": {"tensorboard": True}}, TrainConfig)


def read_back(folder: Path) -> EventAccumulator:
    """Return what TensorBoard shows of a run."""
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return events


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = read_back(folder)
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


def metrics(folder: Path) -> dict[str, list[tuple[int, Any]]]:
    """Return metrics.jsonl by name, in the precision of an event file."""
    values: dict[str, list[tuple[int, Any]]] = {}
    for text in (folder / "metrics.jsonl").read_text().splitlines():
        line = json.loads(text)
        step = line.pop("step")
        for name, value in line.items():
            values.setdefault(dashboard_name(name), []).append((step, pytest.approx(value, rel=1e-6)))
    return values


def test_a_resumed_run_shows_each_step_once(tmp_path: Path) -> None:
    folder = tmp_path / "run"

    with dying_at(6):
        fit(settings(folder))
    # The last checkpoint is that of step 4.
    assert [step for step, _ in scalars(folder)["train/loss"]] == [1, 2, 3, 4, 5]
    fit(settings(folder))

    assert len(list((folder / "tensorboard").iterdir())) == 2
    shown = scalars(folder)
    assert shown == metrics(folder)
    assert [step for step, _ in shown["valid/spearman"]] == [step for step, _ in shown["test/spearman"]] == [0, 6]
    assert [step for step, _ in shown["train/loss"]] == [1, 2, 3, 4, 5, 6]
    assert {
        "train/cosine",
        "train/learning_rate",
        "system/texts_per_second",
        "valid/spearman",
        "test/spearman",
    } <= shown.keys()
    (text, *_) = read_back(folder).Tensors("settings/text_summary")
    assert {"similarity/label 0 to 1.67", "similarity/label 3.33 to 5"} <= set(read_back(folder).Tags()["histograms"])
    (table, *_) = read_back(folder).Tensors("nearest neighbours/text_summary")
    assert table.tensor_proto.string_val[0].decode().startswith("| text | before training | after training |")
    assert '"max_steps": 6' in text.tensor_proto.string_val[0].decode()


def test_steps_from_where_a_run_resumes_are_hidden_even_if_they_are_never_repeated(tmp_path: Path) -> None:
    run = RunInfo(tmp_path, TrackingConfig(tensorboard=True), {}, {})
    for start, step in ((0, 10), (5, 6)):
        sink = tensorboard.Sink(run)
        sink.rewind(start + 1)
        sink.log_metrics(start + 1, {"loss": 1.0})
        sink.log_metrics(step, {"loss": 2.0})
        sink.close(failed=False)
    assert scalars(tmp_path)["train/loss"] == [(1, 1.0), (6, 1.0), (6, 2.0)]


def test_a_sink_that_recorded_nothing_can_be_closed(tmp_path: Path) -> None:
    tensorboard.Sink(RunInfo(tmp_path, TrackingConfig(tensorboard=True), {}, {})).close(failed=True)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    check_sinks(TrackingConfig(tensorboard=True))
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorboard" else find_spec(name))
    with pytest.raises(ConfigError) as error:
        check_sinks(TrackingConfig(tensorboard=True))
    assert str(error.value) == (
        "tracking.tensorboard=true needs the package tensorboard: type pip install tensorboard, or leave it out."
    )
