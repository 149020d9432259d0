"""Early stopping: after as many evaluations without a gain as the settings say, and where a resumed run would too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import sample_files
from safetensors.torch import load_file

from angle import ConfigError, TrainConfig, build_config
from angle.evaluation.run_evaluators import metric_named
from angle.tracking.tracker import Tracker
from angle.training.checkpoint import Progress
from angle.training.loop import fit
from angle.training.summary import summary
from angle.training.validation import count_evaluation, is_out_of_patience


def settings(folder: Path, output_dir: Path, **train: Any) -> TrainConfig:
    files = {name: str(folder / f"{name}.jsonl") for name in ("train", "valid_sts")}
    train = {
        "max_steps": 40, "batch_size": 8, "eval_steps": 2, "save_steps": 3, "logging_steps": 5, "patience": 2,
        "learning_rate": 0.5, "output_dir": str(output_dir),
    } | train  # fmt: skip
    return build_config(
        {"data": {name: {"name_or_path": file} for name, file in files.items()}, "train": train}, TrainConfig
    )


def lines(folder: Path, name: str) -> dict[int, float]:
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[name] for line in metrics if name in line}


def naive_stop(scores: dict[int, float], patience: int, min_gain: float) -> int:
    """Return the step at which a run with these scores stops."""
    reference, waited = -1.0, 0
    for step, score in list(scores.items())[1:]:  # not the one before training
        reference, waited = (score, 0) if score > reference + min_gain / 100 else (reference, waited + 1)
        if waited == patience:
            return step
    return max(scores)


@pytest.mark.parametrize(("patience", "min_gain"), [(1, 0.0), (2, 0.0), (2, 1.0), (3, 0.5)])
def test_evaluations_without_a_gain_are_counted(patience: int, min_gain: float) -> None:
    scores = dict(enumerate([0.5, 0.6, 0.605, 0.59, 0.601, 0.7, 0.7, 0.7, 0.7]))
    progress, step = Progress(), 0
    while not is_out_of_patience(progress, patience) and step + 1 in scores:
        step += 1
        count_evaluation(progress, scores[step], metric_named(None), min_gain)
    assert step == naive_stop(scores, patience, min_gain) < max(scores)


def test_a_loss_must_fall() -> None:
    progress = Progress()
    for loss in (2.0, 1.5, 1.45, 1.3):
        count_evaluation(progress, loss, metric_named("loss"), 0.1)
    assert (progress.reference_score, progress.evaluations_without_gain) == (1.3, 0)
    count_evaluation(progress, 1.25, metric_named("loss"), 0.1)
    assert progress.evaluations_without_gain == 1


@pytest.mark.slow
def test_a_run_stops_early_and_a_killed_one_at_the_same_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample_files(tmp_path)
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    result = fit(settings(tmp_path, straight))
    scores = lines(straight, "valid/spearman")
    stop = max(scores)
    assert stop == naive_stop(scores, 2, 0.0) < 40
    assert max(lines(straight, "loss")) == stop  # the last steps are reported, though no report was due
    assert (result.steps, result.stopped_early) == (stop, True)
    assert f"step {stop}  stopped early, as train.patience=2 asks" in (straight / "train.log").read_text()

    advance = Tracker.advance
    for fatal in range(2, stop + 1, 3):
        steps = 0

        def advance_or_die(tracker: Tracker, fatal: int = fatal) -> None:
            nonlocal steps
            steps += 1
            if steps == fatal:
                raise RuntimeError
            advance(tracker)

        folder = killed / str(fatal)
        monkeypatch.setattr(Tracker, "advance", advance_or_die)
        with pytest.raises(RuntimeError):
            fit(settings(tmp_path, folder))
        monkeypatch.setattr(Tracker, "advance", advance)
        resumed = fit(settings(tmp_path, folder))
        assert (resumed.best_step, resumed.best_score) == (result.best_step, result.best_score)
        for name in ("valid/spearman", "loss", "gradient_norm"):
            assert lines(folder, name) == lines(straight, name)
        weights, expected = (load_file(path / "final" / "model.safetensors") for path in (folder, straight))
        assert all((weights[name] == expected[name]).all() for name in expected)


@pytest.mark.slow
def test_stopping_where_a_report_is_due_too_also_at_the_last_step_of_all(tmp_path: Path) -> None:
    sample_files(tmp_path)
    common = {"logging_steps": 1, "scheduler": "constant", "warmup_steps": 0}
    first = fit(settings(tmp_path, tmp_path / "first", **common))
    last = fit(settings(tmp_path, tmp_path / "last", max_steps=first.steps, **common))
    assert (first.stopped_early, last.stopped_early, last.steps) == (True, True, first.steps)
    assert lines(tmp_path / "last", "loss") == lines(tmp_path / "first", "loss")


@pytest.mark.slow
def test_a_run_that_stopped_early_and_was_killed_before_its_end_takes_no_further_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample_files(tmp_path)
    config = settings(tmp_path, tmp_path / "run", save_steps=1)

    def die(_: object) -> None:
        raise RuntimeError

    with monkeypatch.context() as patch:
        patch.setattr("angle.training.loop._finish", die)
        with pytest.raises(RuntimeError):
            fit(config)
    stop = max(lines(tmp_path / "run", "loss"))
    fit(config)
    assert max(lines(tmp_path / "run", "loss")) == stop < 40


@pytest.mark.slow
def test_a_run_that_is_pruned_ends_at_that_evaluation_also_if_it_is_killed_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample_files(tmp_path)
    config, heard = settings(tmp_path, tmp_path / "run", max_steps=8, patience=None), list[tuple[float, float]]()

    def prune(share_done: float, score: float) -> bool:
        heard.append((share_done, score))
        return len(heard) == 3

    def die(_: object) -> None:
        raise RuntimeError

    with monkeypatch.context() as patch:
        patch.setattr("angle.training.loop._finish", die)
        with pytest.raises(RuntimeError):
            fit(config, pruner=prune)
    scores = lines(tmp_path / "run", "valid/spearman")
    assert heard == [(step / 8, scores[step]) for step in (2, 4, 6)]
    result = fit(config, pruner=prune)
    assert (result.pruned, result.stopped_early, result.steps) == (True, False, 6)
    assert len(heard) == 3
    assert "step 6  stopped early, as the search asks" in (tmp_path / "run" / "train.log").read_text()
    assert "Pruned  after 6 steps" in summary(result)
    whole = fit(settings(tmp_path, tmp_path / "whole", max_steps=4, patience=None), pruner=lambda share, _: share == 1)
    assert (whole.pruned, whole.steps) == (False, 4)  # at its end there is nothing to spare


def test_a_run_is_no_search() -> None:
    with pytest.raises(ConfigError, match=r"^hparams.enabled=true searches in a sweep, of which fit is one run"):
        fit(build_config({"hparams": {"enabled": True}}, TrainConfig))


def test_early_stopping_needs_something_to_watch(tmp_path: Path) -> None:
    sample_files(tmp_path)
    config = settings(tmp_path, tmp_path / "run")
    config.data.valid_sts.name_or_path = None
    with pytest.raises(
        ConfigError, match=r"^train.patience=2 has nothing to watch: give pairs with labels as data.val"
    ):
        fit(config)
    with pytest.raises(ConfigError, match=r"^train.min_gain=0.5 has no effect without train.patience"):
        build_config({"train": {"min_gain": 0.5}}, TrainConfig)
    with pytest.raises(ConfigError, match=r"^train.patience=0 cannot work: it must be at least 1"):
        build_config({"train": {"patience": 0}}, TrainConfig)
