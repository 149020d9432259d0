"""What a sweep answers: its table, and sweep.json and sweep.csv, which hold as much after a kill."""

from __future__ import annotations

import csv
import json
import statistics
from dataclasses import replace
from pathlib import Path

import pytest

from angle.cli.jobs import JobRunner
from angle.cli.sweep import best_metric
from angle.config import SWEEP_FILE, EvaluateConfig, TrainConfig
from angle.config.build import build_config
from angle.config.record import write_config
from angle.errors import ConfigError
from angle.sweeps.record import TABLE_FILE, JobResult, SweepRecord
from angle.sweeps.table import comparison_table


def job(weight: int, score: float | None, metric: str | None = None, error: str | None = None) -> JobResult:
    return JobResult({"loss.ibn_w": str(weight)}, f"sweep/{weight}", score, metric, error, trained=True)


def seeds(weight: int, *scores: float | None) -> list[JobResult]:
    """Return the jobs of a setting, one a seed; None is the score of one that failed."""
    return [
        JobResult(
            {"loss.ibn_w": str(weight), "train.seed": str(seed)}, f"sweep/{weight}-{seed}", score, None,
            None if score is not None else "out of memory", trained=True,
        )
        for seed, score in enumerate(scores, 1)
    ]  # fmt: skip


def test_the_best_job_has_the_highest_score() -> None:
    assert comparison_table([job(1, 0.25), job(2, 0.5), job(3, None, error="no rows")]) == (
        "              Spearman\n"
        "loss.ibn_w=1     25.00\n"
        "loss.ibn_w=2     50.00  best\n"
        "loss.ibn_w=3    failed\n"
        "\n"
        "failed  loss.ibn_w=3: no rows\n"
        "\n"
        "Best    sweep/2"
    )


def test_a_loss_is_shown_as_it_is_and_the_lowest_is_best() -> None:
    """A score is its negative, because higher is better for whatever compares the jobs."""
    assert comparison_table([job(1, -0.25, "loss"), job(2, -0.5, "loss")]) == (
        "                  loss\nloss.ibn_w=1     0.250  best\nloss.ibn_w=2     0.500\n\nBest    sweep/1"
    )


def test_column_is_as_wide_as_a_long_metric_name() -> None:
    header, row, *_ = comparison_table([job(1, 0.5, "triplet_accuracy"), job(2, 0.25, "triplet_accuracy")]).splitlines()
    assert header == "              triplet accuracy"
    assert row == "loss.ibn_w=1             50.00  best"


def test_jobs_with_different_metrics_are_not_compared() -> None:
    header, *rows = comparison_table([job(1, 0.5, "triplet_accuracy"), job(2, 0.25)]).splitlines()
    assert header.split() == ["score"]
    assert not any("best" in row.lower() for row in rows)


def test_a_pruned_job_is_neither_failed_nor_best() -> None:
    pruned = job(2, None)
    pruned.pruned = True
    lines = comparison_table([job(1, 0.25), pruned]).splitlines()
    assert lines[1:3] == ["loss.ibn_w=1     25.00  best", "loss.ibn_w=2    pruned"]


def test_a_sweep_whose_jobs_all_failed_says_so() -> None:
    lines = comparison_table([job(1, None, error="no rows"), job(2, None, error="no memory")]).splitlines()
    assert lines[4:] == [
        "failed  loss.ibn_w=1: no rows", "failed  loss.ibn_w=2: no memory", "", "All 2 jobs have failed."
    ]  # fmt: skip


def test_a_setting_with_several_seeds_is_judged_by_its_mean() -> None:
    """One job's luck does not win."""
    lucky, steady = (0.9, 0.5, 0.5), (0.7, 0.72, 0.74)
    header, first, second, _, *best = comparison_table([*seeds(1, *lucky), *seeds(2, *steady)]).splitlines()
    assert header.split() == ["Spearman", "sd", "n"]
    for row, scores, end in ((first, lucky, []), (second, steady, ["best"])):
        numbers = [f"{100 * statistics.mean(scores):.2f}", f"{100 * statistics.stdev(scores):.2f}", "3"]
        assert row.split()[1:] == [*numbers, *end]
    assert best == ["Best    loss.ibn_w=2, by the mean of its 3 seeds; its best run is", "        sweep/2-3"]


def test_seeds_that_failed_are_counted_and_named() -> None:
    lines = comparison_table([*seeds(1, 0.5, None), *seeds(2, 0.25, 0.25)]).splitlines()
    assert lines[1].split() == ["loss.ibn_w=1", "50.00", "1", "best", "1", "of", "2", "failed"]
    assert lines[4] == "failed  loss.ibn_w=1 train.seed=2: out of memory"


def test_a_sweep_of_seeds_alone_is_one_setting() -> None:
    jobs = [JobResult({"train.seed": str(seed)}, f"sweep/{seed}", score) for seed, score in enumerate((0.5, 0.75))]
    for one in jobs:
        one.error = None
    assert comparison_table(jobs).splitlines()[1].split() == ["all", "seeds", "62.50", "17.68", "2", "best"]


def test_a_long_setting_stands_on_a_line_of_its_own() -> None:
    name = "data.train.name_or_path=" + 40 * "x"
    jobs = [JobResult(dict([name.split("=")]), "sweep/1", 0.5, None, None), job(2, 0.25)]
    lines = comparison_table(jobs).splitlines()
    assert lines[1] == name
    assert lines[2].split() == ["50.00", "best"]
    assert max(map(len, lines)) <= 80


def record_of(folder: Path, result: JobResult) -> None:
    """Write down a job, and the record of its run."""
    run = Path(result.folder)
    if result.error is None:
        run.mkdir(parents=True, exist_ok=True)
        scores = {"best_step": 30, "test_after": 0.5, "test_before": None}
        (run / "run.json").write_text(json.dumps({"finished": True, "result": scores}))
    SweepRecord(folder).add(result)


def test_jobs_are_written_down_as_they_end(tmp_path: Path) -> None:
    for number, result in enumerate((job(10, 0.25), job(20, None, error="no memory"), job(30, 0.5)), 1):
        result.folder = str(tmp_path / result.folder)
        record_of(tmp_path, result)
        assert len(json.loads((tmp_path / SWEEP_FILE).read_text())["jobs"]) == number
    with (tmp_path / TABLE_FILE).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["loss.ibn_w"], row["status"], row["metric"], row["score"], row["error"]) for row in rows] == [
        ("10", "finished", "spearman", "0.25", ""),
        ("20", "failed", "", "", "no memory"),
        ("30", "finished", "spearman", "0.5", ""),
    ]
    assert [row["test_after"] for row in rows] == ["0.5", "", "0.5"]
    assert "test_before" not in rows[0]


def test_a_job_that_is_done_again_takes_the_place_of_the_first(tmp_path: Path) -> None:
    for error, seconds in (("no memory", 3.0), (None, 60.0), (None, 0.1)):
        result = job(10, None if error else 0.5, error=error)
        result.folder, result.seconds = str(tmp_path / "sweep" / "10"), seconds
        record_of(tmp_path, result)
    (entry,) = json.loads((tmp_path / SWEEP_FILE).read_text())["jobs"]
    assert (entry["status"], entry["error"], entry["score"]) == ("finished", None, 0.5)
    assert entry["seconds"] == 60.0  # the last one found it finished


def test_a_job_is_written_down_when_it_begins(tmp_path: Path) -> None:
    """What is lost without a word is known by that; the record tells commands apart that have run the same job."""
    record, begun = SweepRecord(tmp_path), JobResult({"loss.ibn_w": "10"}, str(tmp_path / "10"))
    for end, status in ((0.5, "finished"), (None, "pruned")):
        record.add(begun, "first")
        assert json.loads((tmp_path / SWEEP_FILE).read_text())["jobs"][0]["status"] == "running"
        recorded = record.outcome(begun.settings, "first")
        assert recorded is not None
        assert not recorded.is_over
        ended = JobResult(begun.settings, begun.folder, end, error=None, pruned=end is None)
        record.add(ended, "second")
        assert record.outcome(begun.settings, "first") is None
        recorded = record.outcome(begun.settings, "second")
        assert recorded is not None
        assert (recorded.status, recorded.score, recorded.folder) == (status, end, begun.folder)


def test_a_job_that_is_finished_stays_so_while_it_is_looked_at_again(tmp_path: Path) -> None:
    record, begun = SweepRecord(tmp_path), JobResult({"loss.ibn_w": "10"}, str(tmp_path / "10"))
    record_of(tmp_path, JobResult(begun.settings, begun.folder, 0.5, error=None, seconds=60.0))
    record.add(begun, "third")
    recorded = record.outcome(begun.settings, "third")
    assert recorded is not None
    assert recorded.is_over
    record.add(JobResult(begun.settings, begun.folder, 0.5, error=None, seconds=0.1), "third")
    assert json.loads((tmp_path / SWEEP_FILE).read_text())["jobs"][0]["seconds"] == 60.0


def test_jobs_in_folders_of_one_name_are_two(tmp_path: Path) -> None:
    for parent in "ab":
        record_of(
            tmp_path, JobResult({"train.output_dir": f"{parent}/run"}, str(tmp_path / parent / "run"), 0.5, error=None)
        )
    assert len(json.loads((tmp_path / SWEEP_FILE).read_text())["jobs"]) == 2


def test_a_record_that_is_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / SWEEP_FILE).write_text("[1, 2]")
    with pytest.raises(ConfigError, match="is not as a sweep writes it: move it away"):
        SweepRecord(tmp_path).add(job(1, 0.5))
    assert (tmp_path / SWEEP_FILE).read_text() == "[1, 2]"


def test_a_resumed_run_is_scored_by_its_own_metric(tmp_path: Path) -> None:
    assert best_metric(build_config({"train": {"best_metric": "loss"}}, TrainConfig)) == "loss"
    assert best_metric(build_config({}, TrainConfig)) is None
    assert best_metric(EvaluateConfig()) is None
    write_config(tmp_path, build_config({"train": {"best_metric": "loss"}}, TrainConfig))
    assert best_metric(build_config({"train": {"resume": str(tmp_path)}}, TrainConfig)) == "loss"


def test_the_time_left_is_that_of_the_rounds_that_jobs_side_by_side_need(tmp_path: Path) -> None:
    """Of ten jobs two have ended, two run beside the fifth, and all take as long as the longest did."""
    runner = JobRunner[TrainConfig](lambda _: None, TrainConfig, {"loss.ibn_w"}, total=10)
    runner.sweep_folder = str(tmp_path)
    record = SweepRecord(tmp_path)
    fifth = JobResult({"loss.ibn_w": "5"}, str(tmp_path / "5"))
    runner.numbers = {fifth.overrides: [5]}
    assert runner._header(fifth) == "Job 5 of 10  loss.ibn_w=5"
    for weight, seconds in ((1, 60.0), (2, 200.0)):
        record.add(replace(job(weight, 0.5), folder=str(tmp_path / str(weight)), seconds=seconds), runner.command)
    assert runner._header(fifth) == "Job 5 of 10  loss.ibn_w=5  (about 20 min left)"
    for weight in (3, 4):
        record.add(JobResult({"loss.ibn_w": str(weight)}, str(tmp_path / str(weight))), runner.command)
    assert runner._header(fifth) == "Job 5 of 10  loss.ibn_w=5  (about 10 min left)"
    record.add(JobResult({"loss.ibn_w": "0"}, str(tmp_path / "0")), "a command before")
    assert runner._header(fifth) == "Job 5 of 10  loss.ibn_w=5  (about 10 min left)"
