"""The quality benchmark: what it runs, what it chooses by, and what it says."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import sample_rows, write_jsonl
from scipy import stats

from angle.evaluation.comparison import Difference
from benchmarks.quality import bench as benchmark
from benchmarks.quality import inputs, report
from benchmarks.quality.__main__ import dry_run, parse
from benchmarks.quality.bench import Bench, Run
from benchmarks.quality.figures import best_rate, paired_difference
from benchmarks.quality.inputs import with_whole_labels
from benchmarks.quality.records import Records, locked
from benchmarks.quality.sides import DOCUMENTED, PAIRS, PARTS, Pair, Side, comparisons_of, sides_of
from benchmarks.throughput import prepare
from benchmarks.throughput.jobs import ANGLE_EMB, OWN, PEERS, SBERT, Job, WorkerError

MakeBench = Callable[..., Bench]
FACTS = {"date": "today", "hardware": "a machine", "command": "python -m benchmarks.quality", "versions": "all"}


@pytest.fixture
def words(folder_of: Callable[[str], str], tmp_path: Path) -> list[str]:
    """A command line on a tiny model and a few rows, beside sentence-transformers, with two seeds and rates."""
    files = {"stsb": ("A", "train"), "nli": ("B", "train"), "valid": ("A", "validation"), "held": ("A", "test")}
    for name, (data_format, split) in files.items():
        write_jsonl(tmp_path / f"{name}.jsonl", sample_rows(data_format, split, 40))
    given = [word for name in ("stsb", "nli", "valid") for word in (f"--{name}", str(tmp_path / f"{name}.jsonl"))]
    given += ["--model", folder_of("bert"), "--test", f"held={tmp_path / 'held.jsonl'}", "--peers", SBERT]
    given += ["--results", str(tmp_path / "results.jsonl"), "--batch-size", "8", "--max-length", "32"]
    return [*given, "--seeds", "1", "2", "--rates", "1e-5", "1e-4", "--threads", "1"]


@pytest.fixture
def make_bench(words: list[str], tmp_path: Path) -> MakeBench:
    """Makes the benchmark anew, as a second start of the command does."""
    numbers = iter(range(100))

    def make(*more: str) -> Bench:
        options = parse([*words, *more])
        scratch = tmp_path / f"scratch-{next(numbers)}"
        scratch.mkdir()
        return Bench(options, scratch, Records(options.results))

    return make


class Trainer:
    """Answers jobs at once; scores and times are functions of the job."""

    def __init__(self) -> None:
        """Count what is asked."""
        self.fits: list[Job] = []
        self.losses: dict[str, float] = {}
        self.end_after: int | None = None

    def score(self, job: Job, name: str) -> float:
        """Validation prefers the low rate, the test set the high one."""
        return 0.5 + job.seed / 100 + (-job.learning_rate if name == "valid" else job.learning_rate) * 100

    def start(self, job: Job, python: str, threads: int | None) -> dict[str, Any]:
        """Take the place of `jobs.start`."""
        if job.task == "loss":
            return {"loss": self.losses.get(job.system, 1.0)}
        if job.task == "fit":
            if len(self.fits) == self.end_after:
                raise KeyboardInterrupt
            self.fits.append(job)
            return {"model": json.dumps(dataclasses.asdict(job)), "seconds": [0.5 if job.system == OWN else 1.0] * 4}
        trained = Job(**json.loads(job.model))
        return {file: self.score(trained, Path(file).stem) for file in job.options["files"]}


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Trainer:
    """Let no process start."""
    made = Trainer()
    monkeypatch.setattr(benchmark, "start", made.start)
    return made


def test_the_rate_with_the_best_mean_is_chosen() -> None:
    assert best_rate({2e-5: [0.7, 0.9], 5e-5: [0.82, 0.8], 1e-4: [0.81, 0.81]}) == 5e-5  # the lowest of two equal ones


def test_an_interval_is_students_on_the_differences_by_seed() -> None:
    first, second = {1: 0.8, 2: 0.9, 3: 0.7, 4: 0.85}, {4: 0.8, 3: 0.66, 2: 0.89, 1: 0.75}
    differences = np.array([0.05, 0.01, 0.04, 0.05])
    half = stats.t.ppf(0.975, 3) * differences.std(ddof=1) / 2
    found = paired_difference(first, second)
    assert found is not None
    assert [found.mean, found.low, found.high] == pytest.approx([0.0375, 0.0375 - half, 0.0375 + half])
    assert found.seeds == 4
    assert paired_difference({1: 0.8}, {1: 0.7}) is None
    equal = paired_difference({1: 0.75, 2: 0.5}, {1: 0.5, 2: 0.25})
    assert equal == Difference(0.25, 0.25, 0.25, 2)


def test_only_a_clear_difference_is_called_better_or_worse() -> None:
    pair = Pair(Side("ours", OWN), Side("theirs", SBERT))
    clear = (Difference(0.01, 0.002, 0.018, 5), Difference(-0.01, -0.018, -0.002, 5))
    said = [report.verdict(pair, "sick", found, 0.01) for found in (*clear, Difference(0.01, -0.001, 0.021, 5), None)]
    assert said[0] == "sick: ours against theirs: +1.00 [+0.20, +1.80]: it is better."
    assert said[1].endswith("[-1.80, -0.20]: it is worse.")
    assert said[2] == "sick: ours against theirs: +1.00 [-0.10, +2.10]; that may be chance."
    assert said[3] == "sick: ours against theirs: +1.00; with one seed, that may be chance."
    assert not any("better" in line or "worse" in line for line in said[2:])


def test_validation_chooses_and_its_choice_is_tested(make_bench: MakeBench, trainer: Trainer) -> None:
    bench = make_bench("--only", "steps-A")
    assert bench.measure() == 0
    found = {one.side.name: one for one in report.outcomes(bench, PARTS["steps-A"])}
    assert len(found) == 3
    for one in found.values():
        assert one.learning_rate == 1e-5  # on the test set, 1e-4 has the best scores
        assert one.is_at_edge
        assert one.valid == pytest.approx({1: 0.509, 2: 0.519})
        assert one.tests["held"] == pytest.approx({1: 0.511, 2: 0.521})


def test_only_the_chosen_rate_gets_more_seeds(
    make_bench: MakeBench, trainer: Trainer, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--only", "steps-B", "--seeds", "3", "1", "2", "--rate-seeds", "1")
    bench = make_bench(*words)
    assert [bench.rate(PARTS["steps-B"], side) for side in bench.sides(PARTS["steps-B"])] == [None, None]
    dry_run(bench)
    assert "steps-B: more seeds of angle-hydra, loss=auto, sentence-transformers, " in capsys.readouterr().out
    assert bench.measure() == 0
    asked = [(job.system, job.learning_rate, job.seed) for job in trainer.fits]
    choosing = {(system, rate, 1) for system in (OWN, SBERT) for rate in (1e-5, 1e-4)}
    assert set(asked[:4]) == choosing
    assert set(asked[4:]) == {(system, 1e-5, seed) for system in (OWN, SBERT) for seed in (2, 3)}
    assert len(asked) == 8
    (ours, _) = report.outcomes(bench, PARTS["steps-B"])
    assert ours.tests["held"] == pytest.approx({1: 0.511, 2: 0.521, 3: 0.531})
    assert make_bench(*words).left(bench.parts) == []


def test_runs_at_the_same_time_are_those_of_one_after_the_other(
    make_bench: MakeBench, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With three at once, each waits until another runs beside it."""
    beside = threading.Barrier(2, timeout=60)

    def start(job: Job, python: str, threads: int | None) -> dict[str, Any]:
        if job.task == "fit":
            beside.wait()
        return trainer.start(job, python, threads)

    monkeypatch.setattr(benchmark, "start", start)
    words = ("--only", "settings-A", "--seeds", "1", "2")
    assert make_bench(*words, "--at-once", "3").measure() == 0
    assert len(trainer.fits) == len({str(job) for job in trainer.fits}) == 8
    assert make_bench(*words).left([PARTS["settings-A"]]) == []


def test_a_second_start_does_what_is_left(
    make_bench: MakeBench, trainer: Trainer, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer.end_after = 3
    with pytest.raises(KeyboardInterrupt):
        make_bench("--only", "settings-A").measure()
    bench = make_bench("--only", "settings-A")
    assert len(bench.left(bench.parts)) == 2 * 4 - 3
    trainer.end_after = None
    assert bench.measure() == 0
    asked = Counter((job.system, str(job.options), job.seed) for job in trainer.fits)
    assert len(asked) == 8
    assert set(asked.values()) == {1}
    again = make_bench("--only", "settings-A")
    capsys.readouterr()
    dry_run(again)
    assert capsys.readouterr().out == "0 runs are left, none to wait for\n"
    assert again.measure() == 0
    assert len(trainer.fits) == 8
    assert len(make_bench("--only", "settings-A", "--seeds", "2", "3").left([PARTS["settings-A"]])) == 4
    assert len(make_bench("--only", "settings-A", "--rows", "32").left([PARTS["settings-A"]])) == 8


def test_a_run_that_fails_is_left_for_the_next_start(
    make_bench: MakeBench, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(job: Job, python: str, threads: int | None) -> dict[str, Any]:
        if (job.system, job.seed, job.task) == (SBERT, 2, "fit"):
            raise WorkerError("out of memory")
        return trainer.start(job, python, threads)

    monkeypatch.setattr(benchmark, "start", fail)
    bench = make_bench("--only", "settings-B")
    assert bench.measure() == 1
    assert [(run.side.system, run.seed) for run in bench.left(bench.parts)] == [(SBERT, 2)]
    assert "Not measured yet: 1 of 4 runs." in report.section(bench, FACTS)


def test_time_gives_each_side_the_steps_that_it_can_do(make_bench: MakeBench, trainer: Trainer) -> None:
    part, bench = PARTS["time-B"], make_bench("--only", "time-B")
    assert [bench.steps(part, side) for side in bench.sides(part)] == [None, None]
    assert bench.measure() == 0
    steps = {job.system: job.steps for job in trainer.fits}
    assert steps == {OWN: 10, SBERT: 5}  # 40 rows by 8; this project takes half the time
    count = len(trainer.fits)
    assert count == 2 * benchmark.ROUNDS + 2 * 2 * 2
    again = make_bench("--only", "time-B")
    assert again.measure() == 0
    assert len(trainer.fits) == count
    # In equal steps, sentence-transformers does the same once more, which is known.
    assert {run.side.system for run in again.left([PARTS["steps-B"]])} == {OWN}
    shorter = make_bench("--steps", "3", "--only", "time-B", "steps-B", "settings-B")  # the speed is known
    assert [run.steps for run in shorter.left([PARTS["time-B"]]) if run.side.system == OWN] == [6] * 4
    assert {run.steps for run in shorter.left([PARTS["steps-B"], PARTS["settings-B"]])} == {3}
    assert "All train for 3 steps" in report.section(shorter, FACTS)


def test_the_report_has_every_side_and_no_claim_without_an_interval(make_bench: MakeBench, trainer: Trainer) -> None:
    bench = make_bench("--only", "steps-B", "settings-B")
    bench.measure()
    text = report.section(bench, FACTS)
    lines = text.splitlines()
    assert (
        "| angle-hydra, loss=auto | 1e-05, the last of the grid | 5 | 2 s | 0 s | 51.40 ± 0.71 | 51.60 ± 0.71 |"
        in lines
    )
    verdicts = [line for line in lines if line.startswith("- held: ")]
    assert len(verdicts) == 2
    assert all(line.endswith("+0.00 [+0.00, +0.00]; that may be chance.") for line in verdicts)
    tables = [line for line in lines if line.startswith("|")]
    assert {line.count("|") for line in tables} == {8}


def test_the_report_speaks_of_labels_only_where_there_are_some(make_bench: MakeBench) -> None:
    for equality in ("settings", "steps"):
        graded, triples = (report.section(make_bench("--only", f"{equality}-{name}"), FACTS) for name in "AB")
        assert "abels" in graded.split("- Scores")[1]
        assert "abels" not in triples.split("- Scores")[1]


def test_the_report_says_how_its_own_parts_were_measured(make_bench: MakeBench) -> None:
    settings, steps = (report.section(make_bench("--only", part), FACTS) for part in ("settings-B", "steps-B"))
    assert "- Same settings: an epoch" in settings
    assert "loss=auto" not in settings.split("- Scores")[1]
    assert "over the first 2 seeds" in steps
    assert "- Same settings: an epoch" not in steps
    assert "over the first seed." in report.section(make_bench("--only", "steps-B", "--rate-seeds", "1"), FACTS)


def test_sides_whose_losses_differ_are_not_compared(make_bench: MakeBench, trainer: Trainer) -> None:
    for loss in (1.002, float("nan")):
        trainer.losses = {SBERT: loss}
        with pytest.raises(SystemExit, match="not the same objective, so nothing is measured"):
            make_bench("--only", "settings-B").measure()
    assert trainer.fits == []


def test_settings_are_everything_that_decides_on_scores(make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = make_bench()
    run = Run(DOCUMENTED["A"][1], "A", 1e-4, 5, 1)
    changed = [
        dataclasses.replace(run, side=DOCUMENTED["A"][2]),
        dataclasses.replace(run, learning_rate=2e-4),
        dataclasses.replace(run, steps=6),
        dataclasses.replace(run, seed=2),
        dataclasses.replace(run, side=dataclasses.replace(run.side, whole_labels=True)),
    ]
    other_test = f"held={bench.options.stsb}"
    words = (("--batch-size", "4"), ("--max-length", "16"), ("--rows", "39"), ("--test", other_test))
    others = [make_bench(*more) for more in words]
    settings = [bench.settings(one) for one in (run, *changed)] + [other.settings(run) for other in others]
    monkeypatch.setattr(prepare, "versions_here", lambda *_: {"torch": "1"})
    settings.append(make_bench().settings(run))
    assert len({json.dumps(one, sort_keys=True) for one in settings}) == len(settings) == 11
    assert json.loads(json.dumps(settings[0])) == settings[0]


def test_the_version_of_this_project_is_that_of_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"log": "abc1234\n", "diff": "", "ls-files": ""}
    monkeypatch.setattr(inputs, "_git", lambda command, *_: said[command])
    assert inputs.code_version() == "abc1234"
    said["diff"] = "+changed"
    first = inputs.code_version()
    said["diff"] = "+changed again"
    assert len({"abc1234", first, inputs.code_version()}) == 3
    said["ls-files"] = "angle/new.py\n"
    assert inputs.code_version() not in (first, "abc1234")


def test_code_that_changes_while_it_runs_ends_the_benchmark(
    make_bench: MakeBench, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench("--only", "settings-B")
    bench.measure()
    monkeypatch.setattr(inputs, "code_version", lambda: "another")
    with pytest.raises(SystemExit, match="angle or conf changed since the start"):
        bench.train(Run(DOCUMENTED["B"][1], "B", 1e-3, 5, 1))
    assert bench.record(Run(DOCUMENTED["B"][1], "B", 1e-3, 5, 1)) is None


def test_angle_emb_finds_the_intended_positives_in_whole_labels() -> None:
    def positives(labels: list[float]) -> set[tuple[int, int]]:
        """The targets of `in_batch_negative_loss`, one by one."""
        whole = [int(label) for label in labels for _ in range(2)]
        found = set()
        for query, one in enumerate(whole):
            for other, two in enumerate(whole):
                left = other * two if two else -2
                right = (query + 1 - query % 2 * 2) * one if one else -1
                if left == right:
                    found.add((query, other))
        return found

    labels = [5.0, 0.0, 2.4, 4.0, 0.5, 2.0]
    rows = with_whole_labels([{"text1": "a", "text2": "b", "label": label} for label in labels])
    mapped = [row["label"] for row in rows]
    texts = [2 * row + side for row, label in enumerate(labels) if label > 0 for side in (0, 1)]
    assert positives(mapped) == {(text, text ^ 1) for text in texts}
    assert positives(labels) != positives(mapped)
    assert list(np.argsort(mapped)) == list(np.argsort(labels))
    assert len(set(mapped)) == len(set(labels))


def test_pairs_have_one_objective_and_parts_name_their_sides() -> None:
    assert list(PARTS) == ["settings-A", "steps-A", "time-A", "settings-B", "steps-B", "time-B"]
    for name, part in PARTS.items():
        sides = sides_of(part, PEERS)
        assert len({side.name for side in sides}) == len(sides)
        compared = {side.name for pair in comparisons_of(part, PEERS) for side in (pair.own, pair.peer)}
        assert compared == {side.name for side in sides}
        assert {side.system for side in sides} == {OWN, *PEERS}, name
        assert {side.system for side in sides_of(part, [ANGLE_EMB])} == {OWN, ANGLE_EMB}
    for pair in (pair for pairs in PAIRS.values() for pair in pairs):
        assert pair.own.whole_labels == pair.peer.whole_labels


def test_a_results_file_of_something_else_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "new" / "results.jsonl"
    with locked(file) as records:
        records.add({"a": 1}, valid=0.5)
        with pytest.raises(SystemExit, match="is in use by another process"), locked(file):
            pass
    found = Records(file).find({"a": 1})
    assert found is not None
    assert found["valid"] == 0.5
    file.write_text(file.read_text() + '{"settings"')
    with pytest.raises(SystemExit, match="line 2, is no record of this benchmark"):
        Records(file)


def test_test_rows_are_not_those_that_choose(words: list[str], make_bench: MakeBench) -> None:
    valid = words[words.index("--valid") + 1]
    with pytest.raises(SystemExit, match="--test held has the rows of --valid"):
        make_bench("--test", f"held={valid}").left([PARTS["settings-A"]])


@pytest.mark.parametrize(
    "wrong",
    [
        ["--test", "file.jsonl"],
        ["--test", "a=1", "a=2"],
        ["--rates", "1", "0"],
        ["--steps", "0"],
        ["--report", __file__],
    ],
)
def test_options_that_cannot_work_are_refused(
    words: list[str], wrong: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse([*words, *wrong])
    assert f"error: {wrong[0]}" in capsys.readouterr().err


def test_a_seed_has_one_order_of_rows_for_every_side(
    make_bench: MakeBench, trainer: Trainer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows: dict[tuple[str, int], list[dict[str, str]]] = {}
    bench = make_bench("--only", "steps-B", "--steps", "12", "--rates", "1e-5")

    def start(job: Job, python: str, threads: int | None) -> dict[str, Any]:
        if job.task == "fit":
            rows[job.system, job.seed] = job.read()
        return trainer.start(job, python, threads)

    monkeypatch.setattr(benchmark, "start", start)
    assert bench.measure() == 0
    assert rows[OWN, 1] == rows[SBERT, 1] != rows[OWN, 2] == rows[SBERT, 2]
    given = [json.loads(line) for line in (tmp_path / "nli.jsonl").read_text(encoding="utf-8").splitlines()]
    first, second, third = (rows[OWN, 1][begin : begin + 40] for begin in (0, 40, 80))
    assert len(third) == 12 * 8 - 80
    assert sorted(map(str, first)) == sorted(map(str, second)) == sorted(map(str, given))
    assert second != first


@pytest.mark.slow
def test_without_dropout_the_same_settings_are_the_same_training(make_bench: MakeBench, tmp_path: Path) -> None:
    model = prepare.without_dropout(make_bench().inputs.model, tmp_path / "model")
    bench = make_bench("--model", model)
    pair = next(pair for pair in PAIRS["B"] if pair.peer.system == SBERT)
    distinct = dataclasses.replace(pair.peer, options={**pair.peer.options, "batch_sampler": "no_duplicates"})
    # Twelve steps are more than two passes, and in no batch of these rows does a text stand twice.
    own, *peers = (bench.train(Run(side, "B", 1e-3, 12, 1)) for side in (pair.own, pair.peer, distinct))
    for peer in peers:
        assert peer["valid"] == pytest.approx(own["valid"], abs=1e-5)
    untrained = bench.train(Run(pair.own, "B", 1e-12, 12, 1))
    assert abs(untrained["valid"] - own["valid"]) > 1e-2


@pytest.mark.slow
def test_sides_train_and_are_scored(make_bench: MakeBench) -> None:
    bench = make_bench("--only", "settings-B")
    bench._check_losses(PARTS["settings-B"])
    for side in sides_of(PARTS["settings-B"], [SBERT]):
        before, after = (bench.train(Run(side, "B", rate, 5, 1)) for rate in (1e-12, 1e-2))
        assert before["valid"] != pytest.approx(after["valid"], abs=1e-6)
        found = bench.record(Run(side, "B", 1e-2, 5, 1))
        assert found is not None
        assert set(found["test"]) == {"held"}
    untrained = {round(record["valid"], 5) for record in bench.records if record["settings"]["learning_rate"] == 1e-12}
    assert len(untrained) == 1  # one evaluator of one model, whoever saved it
