"""A run's sinks: opened together, called in order, and closed whatever happens to one of them."""

from __future__ import annotations

import dataclasses
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from angle import ConfigError, TrainConfig, build_config, fit
from angle.config import TrackingConfig
from angle.tracking import sink
from angle.tracking.sink import RunInfo, Sink
from angle.tracking.tracker import Tracker, check_sinks, open_tracker


def run_info(folder: Path, **tracking: Any) -> RunInfo:
    config = TrainConfig(tracking=TrackingConfig(**tracking))
    return RunInfo(folder, config.tracking, dataclasses.asdict(config), {})


METRICS = {"loss": 0.5, "texts_per_second": 10.0}


class Recorder(Sink):
    """Records its calls beside those of the others."""

    calls: list[tuple[Any, ...]]

    def rewind(self, step: int) -> None:
        self.calls.append((self.name, "rewind", step))

    def log_metrics(self, step: int, values: Mapping[str, float], *, show: bool = False) -> None:
        self.calls.append((self.name, "log_metrics", step, values, show))

    def run_metadata(self) -> dict[str, Any]:
        return {f"{self.name}_id": 1}

    def close(self, *, failed: bool) -> None:
        self.calls.append((self.name, "close", failed))
        if self.name == "unclosable":
            raise OSError("no space left\non the device.")

    @property
    def name(self) -> str:
        return type(self).__module__.rpartition(".")[2]


@pytest.fixture
def recorders(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Replace the optional sinks by `first`, `unclosable` and `last`, and return the calls that they receive."""
    calls: list[tuple[Any, ...]] = []
    for name in ("first", "unclosable", "last"):
        module = types.ModuleType(f"angle.tracking.{name}")
        module.Sink = type("Sink", (Recorder,), {"calls": calls, "__module__": module.__name__})  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return calls


def choose(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(TrackingConfig, "sinks", list(names))


def test_every_call_reaches_every_sink(
    tmp_path: Path, recorders: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    choose(monkeypatch, "first", "last")
    with open_tracker(run_info(tmp_path), is_main=True) as tracker:
        tracker.rewind(3)
        tracker.log_metrics(4, METRICS, show=True)
        assert tracker.run_metadata() == {"first_id": 1, "last_id": 1}
    assert recorders == [
        *(("first", "rewind", 3), ("last", "rewind", 3)),
        *(
            ("first", "log_metrics", 4, METRICS, True),
            ("last", "log_metrics", 4, METRICS, True),
        ),
        *(("last", "close", False), ("first", "close", False)),
    ]


def test_tracker_and_sink_have_the_same_methods() -> None:
    """A method that the container lacks would never be called, and one that it alone has would reach nobody."""

    def calls(cls: type) -> set[str]:
        return {name for name, member in vars(cls).items() if callable(member) and not name.startswith("_")}

    assert calls(Sink) - {"close"} == calls(Tracker)


def test_sinks_are_closed_as_failed_after_an_error(
    tmp_path: Path, recorders: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    choose(monkeypatch, "first", "last")
    with pytest.raises(KeyboardInterrupt), open_tracker(run_info(tmp_path), is_main=True):
        raise KeyboardInterrupt
    assert recorders == [("last", "close", True), ("first", "close", True)]


def test_a_sink_that_cannot_be_closed_is_reported_and_the_others_are_closed(
    tmp_path: Path,
    recorders: list[tuple[Any, ...]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    choose(monkeypatch, "first", "unclosable", "last")
    with open_tracker(run_info(tmp_path), is_main=True):
        pass
    assert [name for name, *_ in recorders] == ["last", "unclosable", "first"]
    assert capsys.readouterr().out == (
        "Warning: unclosable could not be closed, so its last values may be missing: no space left.\n"
    )


def test_a_sink_that_fails_is_reported_once_and_the_others_go_on(
    tmp_path: Path,
    recorders: list[tuple[Any, ...]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    choose(monkeypatch, "unclosable", "last")

    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("the server is gone\nfor good")

    monkeypatch.setattr(sys.modules["angle.tracking.unclosable"].Sink, "log_metrics", fail)
    with open_tracker(run_info(tmp_path), is_main=True) as tracker:
        for step in (1, 2):
            tracker.log_metrics(step, {"loss": 0.5})
    assert [call[2] for call in recorders if call[:2] == ("last", "log_metrics")] == [1, 2]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    assert capsys.readouterr().out == (
        "Warning: unclosable has failed, and records no more of this run: the server is gone.\n"
    )


def test_what_the_run_itself_needs_must_not_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("angle.tracking.metrics_file.Sink.log_metrics", fail)
    with pytest.raises(OSError, match="disk full"), open_tracker(run_info(tmp_path), is_main=True) as tracker:
        tracker.log_metrics(1, {"loss": 0.5})


def test_opened_sinks_are_closed_if_another_cannot_be_opened(
    tmp_path: Path, recorders: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    choose(monkeypatch, "first", "last")

    def fail(*_: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(sys.modules["angle.tracking.last"].Sink, "__init__", fail)
    with pytest.raises(OSError, match="no network"), open_tracker(run_info(tmp_path), is_main=True):
        pytest.fail("opened")
    assert recorders == [("first", "close", True)]


def test_other_processes_record_nothing(
    tmp_path: Path,
    recorders: list[tuple[Any, ...]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    choose(monkeypatch, "first")
    with open_tracker(run_info(tmp_path), is_main=False) as tracker:
        tracker.info("text")
        tracker.header("note", "text")
        tracker.warning("text")
        tracker.start_progress(0, 2)
        tracker.advance()
        tracker.log_metrics(1, {"loss": 1.0}, show=True)
        tracker.stop_progress()
        assert tracker.run_metadata() == {}
    assert recorders == []
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_a_sink_is_checked_before_training(monkeypatch: pytest.MonkeyPatch, recorders: list[tuple[Any, ...]]) -> None:
    choose(monkeypatch, "first", "last")

    def refuse(config: TrackingConfig) -> None:
        raise ConfigError(f"no key for {config.project}")

    monkeypatch.setattr(sys.modules["angle.tracking.last"].Sink, "check", refuse)
    with pytest.raises(ConfigError, match="no key for meadow"):
        check_sinks(TrackingConfig(project="meadow"))
    assert sink.Sink.check(TrackingConfig()) is None


def test_a_run_that_cannot_be_prepared_closes_its_sinks(
    tmp_path: Path, recorders: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    choose(monkeypatch, "first")

    def fail(*_: object) -> None:
        raise MemoryError("no room for the optimiser")

    monkeypatch.setattr("angle.training.loop.prepare", fail)
    config = build_config({"train": {"max_steps": 1, "output_dir": str(tmp_path / "run")}}, TrainConfig)
    with pytest.raises(MemoryError):
        fit(config)
    assert recorders == [("first", "close", True)]
