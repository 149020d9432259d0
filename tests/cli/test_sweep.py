"""The table that ends a sweep."""

from __future__ import annotations

from pathlib import Path

from angle.cli.sweep import JobResult, best_metric, comparison_table
from angle.config import EvaluateConfig, TrainConfig
from angle.config.build import build_config
from angle.config.record import write_config


def job(number: int, score: float | None, metric: str | None = None, failed: bool = False) -> JobResult:
    return JobResult(f"train.seed={number}", f"sweep/{number}", score, metric, failed, trained=True)


def test_the_best_job_has_the_highest_score() -> None:
    assert comparison_table([job(1, 0.25), job(2, 0.5), job(3, None, failed=True)]) == (
        "Job                Spearman\n"
        "  0  train.seed=1     25.00\n"
        "  1  train.seed=2     50.00  best\n"
        "  2  train.seed=3    failed\n"
        "\n"
        "Best    sweep/2"
    )


def test_a_loss_is_shown_as_it_is_and_the_lowest_is_best() -> None:
    """A score is its negative, because higher is better for whatever compares the jobs."""
    assert comparison_table([job(1, -0.25, "loss"), job(2, -0.5, "loss")]) == (
        "Job                    loss\n  0  train.seed=1     0.250  best\n  1  train.seed=2     0.500\n\nBest    sweep/1"
    )


def test_column_is_as_wide_as_a_long_metric_name() -> None:
    header, row, *_ = comparison_table([job(1, 0.5, "triplet_accuracy"), job(2, 0.25, "triplet_accuracy")]).splitlines()
    assert header == "Job                triplet accuracy"
    assert row == "  0  train.seed=1             50.00  best"


def test_jobs_with_different_metrics_are_not_compared() -> None:
    header, *rows = comparison_table([job(1, 0.5, "triplet_accuracy"), job(2, 0.25)]).splitlines()
    assert header.split() == ["Job", "score"]
    assert not any("best" in row.lower() for row in rows)


def test_a_resumed_run_is_scored_by_its_own_metric(tmp_path: Path) -> None:
    assert best_metric(build_config({"train": {"best_metric": "loss"}}, TrainConfig)) == "loss"
    assert best_metric(build_config({}, TrainConfig)) is None
    assert best_metric(EvaluateConfig()) is None
    write_config(tmp_path, build_config({"train": {"best_metric": "loss"}}, TrainConfig))
    assert best_metric(build_config({"train": {"resume": str(tmp_path)}}, TrainConfig)) == "loss"
