"""What a sweep is said to have shown: a planted difference is found, a planted tie is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made_runs import make_sweep, read_jobs, write_sweep

from angle import TrainConfig, build_config
from angle.config.record import write_config
from angle.reports.sweep_page import importance
from angle.sweeps.sweep import Sweep
from angle.sweeps.verdict import verdict

AXES = {"loss.ibn_w": ["10", "20", "30"], "loss.angle_tau": ["1", "20"]}


def sentences(folder: Path) -> list[str]:
    return verdict(Sweep.read(folder))


def test_what_matters_is_named_and_what_does_not(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, AXES, {("loss.ibn_w", "20"): 0.05})
    first, second, ibn_w, tau = sentences(sweep)
    assert first.startswith("loss.ibn_w=20 loss.angle_tau=")
    assert "has the best mean triplet accuracy: 7" in first
    assert "(3 seeds)" in first
    assert second.startswith("That it is better than the second, loss.ibn_w=20 loss.angle_tau=")
    assert ibn_w.startswith("loss.ibn_w matters: 20 is better than ")
    assert ibn_w.endswith("over 6 runs each.")
    assert tau.startswith("loss.angle_tau makes no difference that this sweep can show: ")
    assert tau.endswith("over 9 runs each.")


def test_a_winner_that_is_clear(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, {"loss.ibn_w": ["10", "20"]}, {("loss.ibn_w", "10"): 0.1})
    _, second = sentences(sweep)
    assert second.startswith("It is better than the second, loss.ibn_w=20, by ")
    low, high = map(float, second.partition("[")[2].rstrip("].").split(", "))
    assert 0 < low < 10 < high


def test_one_seed_cannot_tell_what_seeds_do(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, {"loss.ibn_w": ["10", "20"]}, {}, seeds=1)
    assert sentences(sweep)[-1] == (
        "With one seed, how much seeds differ is unknown and not in the interval: add train.seed=1,2,3."
    )


WEIGHTS = {"loss.ibn_w": ["10", "20", "30"]}
GAINS = {("loss.ibn_w", "10"): 0.1, ("loss.ibn_w", "20"): 0.05}


@pytest.mark.parametrize(
    ("default", "expected"),
    [
        (10.0, ["It is better than the second, loss.ibn_w=20, by "]),
        (20.0, ["It is better than the second and the default, loss.ibn_w=20, by "]),
        (30, ["It is better than the second, loss.ibn_w=20, by ", "It is better than the default, loss.ibn_w=30, by "]),
        (
            5.0,
            [
                "It is better than the second, loss.ibn_w=20, by ",
                "The default, loss.ibn_w=5, has no score here, so nothing is compared with it.",
            ],
        ),
    ],
)
def test_the_best_is_compared_with_the_default(tmp_path: Path, default: float, expected: list[str]) -> None:
    sweep = make_sweep(tmp_path, WEIGHTS, GAINS)
    write_sweep(sweep, read_jobs(sweep), {"loss.ibn_w": default})
    assert sentences(sweep)[0].endswith(", and is the default.") is (default == 10)
    assert [sentence.partition(" by ")[0] for sentence in sentences(sweep)[1:]] == [
        sentence.partition(" by ")[0] for sentence in expected
    ]


def test_a_default_that_data_or_model_decide_is_that_of_the_runs(tmp_path: Path) -> None:
    """Of a weight it is the data format's; what cannot be told is not compared."""
    sweep = make_sweep(tmp_path, WEIGHTS, GAINS)
    write_sweep(sweep, read_jobs(sweep), {"loss.ibn_w": None})
    assert Sweep.read(sweep).default is None
    config = build_config({"data_format": {"name": "B"}}, TrainConfig)
    (job,) = (Path(job["folder"]) for job in read_jobs(sweep)[:1])
    write_config(job, config)
    assert Sweep.read(sweep).default == {"loss.ibn_w": "10"}
    write_sweep(sweep, read_jobs(sweep), {"loss.ibn_w": None, "train.max_grad_norm": None})
    assert Sweep.read(sweep).default == {"loss.ibn_w": "10"}


@pytest.mark.parametrize(
    ("axes", "loss", "default"),
    [
        ({"loss.reverse_w": ["0", "20"]}, {"ibn_w": 20.0, "reverse_w": 0.0}, {"loss.reverse_w": "20"}),
        (
            {"loss.ibn_w": ["10", "20"], "loss.reverse_w": ["0", "10"]},
            {"ibn_w": 20.0, "reverse_w": 0.0},
            {"loss.ibn_w": "10", "loss.reverse_w": "10"},
        ),
        ({"loss.angle_w": ["1", "2"]}, {"ibn_w": 0.0, "reverse_w": 0.0}, {"loss.angle_w": "1"}),
    ],
)
def test_defaults_that_depend_on_each_other(
    axes: dict[str, list[str]], loss: dict[str, float], default: dict[str, str], tmp_path: Path
) -> None:
    """A reverse weight that is left out is as much as the run's other in-batch weight, or that weight's default."""
    sweep = make_sweep(tmp_path, axes, {})
    write_sweep(sweep, read_jobs(sweep), dict.fromkeys(axes))
    (job,) = (Path(job["folder"]) for job in read_jobs(sweep)[:1])
    write_config(job, build_config({"data_format": {"name": "B"}, "loss": loss}, TrainConfig))
    assert Sweep.read(sweep).default == default


def test_the_default_of_many_is_not_beaten_by_chance(tmp_path: Path) -> None:
    """The best of forty equal settings is above the default, but no more than the luckiest of forty is."""
    sweep = make_sweep(tmp_path, {"loss.ibn_w": [str(weight) for weight in range(40)]}, {})
    for default in range(0, 40, 8):
        write_sweep(sweep, read_jobs(sweep), {"loss.ibn_w": default})
        assert not [sentence for sentence in sentences(sweep) if sentence.startswith("It is better")]


def test_a_search_is_told_how_to_try_seeds(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, {"loss.ibn_w": ["10", "20"]}, {("loss.ibn_w", "10"): 0.1}, seeds=1)
    (sweep / "optuna.journal").touch()
    assert sentences(sweep)[-1].endswith("in a sweep of loss.ibn_w=10 without hparams=optuna, add train.seed=1,2,3.")


def test_one_lucky_run_does_not_win(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, {"loss.ibn_w": ["10", "20"]}, {("loss.ibn_w", "10"): 0.02}, spread=0.0)
    jobs = read_jobs(sweep)
    jobs[-1]["score"] += 0.05  # of 20: its mean is still lower
    write_sweep(sweep, jobs)
    assert sentences(sweep)[0].startswith("loss.ibn_w=10 has the best mean")


def test_failed_and_unmeasured_jobs(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, {"loss.ibn_w": ["10", "20"]}, {})
    jobs = read_jobs(sweep)
    for job in jobs:
        job |= {"score": None, "metric": None, "error": "TrainingError: loss"}
    write_sweep(sweep, jobs)
    assert sentences(sweep) == ["No job was measured on validation rows, so nothing is compared."]


def test_jobs_measured_by_different_metrics_are_not_compared(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, {"loss.ibn_w": ["10", "20"]}, {})
    jobs = read_jobs(sweep)
    jobs[0]["metric"] = "spearman"
    write_sweep(sweep, jobs)
    assert sentences(sweep) == [
        "The jobs were measured by different metrics or on different rows, so they are not compared."
    ]


def test_importance_is_the_share_of_the_variance(tmp_path: Path) -> None:
    sweep = Sweep.read(make_sweep(tmp_path, AXES, {("loss.ibn_w", "20"): 0.05, ("loss.angle_tau", "1"): 0.02}))
    scores = {tuple(job.others.values()): [] for job in sweep.jobs}
    for job in sweep.jobs:
        scores[tuple(job.others.values())].append(job.score)
    table = np.array([[scores[ibn_w, tau] for tau in AXES["loss.angle_tau"]] for ibn_w in AXES["loss.ibn_w"]])
    total = table.var()
    explained = {
        "loss.ibn_w": (table.mean(axis=(1, 2)).var() / total, 3),
        "loss.angle_tau": (table.mean(axis=(0, 2)).var() / total, 2),
    }
    expected = {name: 1 - (1 - share) * 17 / (18 - groups) for name, (share, groups) in explained.items()}
    assert importance(sweep) == pytest.approx(expected)
    assert 0.7 < expected["loss.ibn_w"] < 1


def test_drawn_numbers_explain_nothing_by_being_different(tmp_path: Path) -> None:
    """Each of 40 runs has numbers of its own; the score follows the first of two settings."""
    weights = [str(weight) for weight in range(40)]
    gains = {("loss.ibn_w", weight): int(weight) / 100 for weight in weights}
    sweep = make_sweep(tmp_path, {"loss.ibn_w": weights}, gains, seeds=1)
    rng = np.random.default_rng(0)
    jobs = read_jobs(sweep)
    for job, rate in zip(jobs, rng.permutation(40), strict=True):
        job["settings"] |= {"train.learning_rate": f"{rate + 1}e-6"}
    write_sweep(sweep, jobs)
    shares = importance(Sweep.read(sweep))
    assert shares["loss.ibn_w"] > 0.8
    assert shares["train.learning_rate"] < 0.2
    write_sweep(sweep, jobs[:3])
    assert importance(Sweep.read(sweep)) == {}
