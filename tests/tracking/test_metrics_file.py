"""metrics.jsonl: JSON whatever the numbers are, and no step twice after a resume."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from angle.config import TrackingConfig
from angle.tracking import metrics_file
from angle.tracking.metrics_file import METRICS_FILE
from angle.tracking.sink import RunInfo


@pytest.fixture
def sink(tmp_path: Path) -> metrics_file.Sink:
    return metrics_file.Sink(RunInfo(tmp_path, TrackingConfig(), {}, {}))


def steps_in(folder: Path) -> list[int]:
    """Return the steps that the metrics are of."""
    return [json.loads(line)["step"] for line in (folder / METRICS_FILE).read_text().splitlines()]


def test_metrics_after_the_checkpoint_and_a_torn_line_are_forgotten(sink: metrics_file.Sink, tmp_path: Path) -> None:
    sink.rewind(0)  # no file yet
    assert not (tmp_path / METRICS_FILE).exists()
    for step in (10, 20, 20, 30):
        sink.log_metrics(step, {"loss": 0.5})
    with (tmp_path / METRICS_FILE).open("a") as file:
        file.write('{"step": 4')
    sink.rewind(21)
    assert steps_in(tmp_path) == [10, 20, 20]
    sink.log_metrics(30, {})
    assert steps_in(tmp_path) == [10, 20, 20, 30]
    sink.rewind(0)
    assert steps_in(tmp_path) == []


def test_a_complete_last_line_without_its_line_end_is_forgotten_too(sink: metrics_file.Sink, tmp_path: Path) -> None:
    """What is appended to it would otherwise be torn in the middle."""
    sink.log_metrics(1, {})
    with (tmp_path / METRICS_FILE).open("a") as file:
        file.write('{"step": 2}')
    sink.rewind(5)
    assert steps_in(tmp_path) == [1]


def test_non_finite_metrics_are_null(sink: metrics_file.Sink, tmp_path: Path) -> None:
    sink.log_metrics(1, {"loss": 0.5, "texts": 64, "gradient_norm": float("inf"), "padding_share": float("nan")})
    (line,) = (tmp_path / METRICS_FILE).read_text().splitlines()
    assert line == '{"step": 1, "loss": 0.5, "texts": 64, "gradient_norm": null, "padding_share": null}'
