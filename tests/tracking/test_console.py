"""Messages on the console and in train.log, and loggers left as they were."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from conftest import sample_rows, write_jsonl

from angle import TrainConfig, build_config, fit
from angle.config import TrackingConfig
from angle.terminal import labelled, wrapped_command
from angle.tracking import console
from angle.tracking.console import LOGGER, without_repetitions
from angle.tracking.sink import RunInfo


@pytest.fixture(autouse=True)
def _untouched_loggers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start from the loggers of a fresh process, whatever an earlier test has left behind."""
    monkeypatch.setattr(LOGGER, "propagate", True)
    LOGGER.setLevel(logging.NOTSET)


def opened(folder: Path) -> console.Sink:
    return console.Sink(RunInfo(folder, TrackingConfig(), {}, {}))


def state() -> tuple[Any, ...]:
    return LOGGER.level, LOGGER.propagate, list(LOGGER.handlers)


def test_messages_are_printed_and_logged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sink = opened(tmp_path)
    sink.info("model   tiny")
    sink.header("note", "toy data")
    sink.warning("the loss is 0")
    sink.start_progress(0, 100)
    metrics = {"loss": 1.0, "loss/cosine": 0.25, "loss/angle": 0.75, "texts_per_second": 1234.5}
    sink.log_metrics(5, metrics, show=True)
    sink.log_metrics(6, metrics)
    sink.log_metrics(7, metrics | {f"loss/term {n}": 0.5 for n in range(3)}, show=True)
    sink.close(failed=False)
    printed = [
        "model   tiny", "note    toy data", "Warning: the loss is 0",
        "step   5/100  loss 1.000 (cosine 0.250, angle 0.750)  1,234 texts/s",
        "step   7/100  loss 1.000  1,234 texts/s",
    ]  # fmt: skip
    assert capsys.readouterr().out.splitlines() == printed
    lines = [line.split(" ", 3)[2:] for line in (tmp_path / "train.log").read_text().splitlines()]
    assert lines == [
        [level, text] for level, text in zip(["INFO", "INFO", "WARNING", "INFO", "INFO"], printed, strict=True)
    ]


def test_lines_fit_80_columns_and_commands_are_continued() -> None:
    first, second = labelled("note", "several words that are too long for a line " * 3).splitlines()
    assert first == "note    several words that are too long for a line several words that are too"
    assert second == "        long for a line several words that are too long for a line"
    command = wrapped_command(["python", "train.py", *(f"loss.angle_tau={number}" for number in range(6))])
    first, second = command.splitlines()
    assert first.endswith("loss.angle_tau=2 \\")
    assert second == "            loss.angle_tau=3 loss.angle_tau=4 loss.angle_tau=5"


def test_close_restores_the_loggers(tmp_path: Path) -> None:
    before = state()
    opened(tmp_path).close(failed=False)
    assert state() == before


def test_run_restores_the_loggers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A program that calls `fit` and then logs under the package's name is heard as before."""
    before = state()
    data = {"train": {"name_or_path": str(write_jsonl(tmp_path / "rows.jsonl", sample_rows("A", "train", 8)))}}
    train = {"max_steps": 1, "batch_size": 4, "output_dir": str(tmp_path / "run")}
    fit(build_config({"data": data, "train": train}, TrainConfig))
    assert state() == before
    caplog.clear()
    LOGGER.warning("after the run")
    assert caplog.messages == ["after the run"]


def test_a_log_that_cannot_be_opened_leaves_the_loggers_alone(tmp_path: Path) -> None:
    before = state()
    with pytest.raises(FileNotFoundError):
        opened(tmp_path / "missing")
    assert state() == before


def test_a_sweep_gives_each_note_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sink = opened(tmp_path)
    with without_repetitions():
        for text in ("a", "a", "b", "a"):
            sink.header("note", text)
            sink.info(text)
    sink.header("note", "a")  # a later sweep in the same process
    sink.close(failed=False)
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("note")] == ["note    a", "note    b", "note    a"]
    assert [line for line in lines if not line.startswith("note")] == ["a", "a", "b", "a"]
    log = (tmp_path / "train.log").read_text()
    assert [log.count(f"note    {text}\n") for text in "ab"] == [4, 1]


def test_messages_are_printed_whatever_the_level_of_the_root_logger(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logging.getLogger().setLevel(logging.CRITICAL)
    try:
        sink = opened(tmp_path)
        sink.info("text")
        sink.close(failed=False)
    finally:
        logging.getLogger().setLevel(logging.WARNING)
    assert capsys.readouterr().out == "text\n"
