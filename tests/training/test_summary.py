"""The last lines of a run: what a user must know first, and nothing to type that speaks against it."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import sample_files, start

from angle import TrainConfig, build_config, fit
from angle.config import LossConfig
from angle.config.keys import unflatten
from angle.config.overrides import hydra_overrides
from angle.training.result import Result
from angle.training.run_folder import RunFolder
from angle.training.summary import gain, suggested_sweep, summary


def summary_of(tmp_path: Path, settings: dict[str, Any] | None = None, **result: Any) -> str:
    """Return the summary of a run with these settings and this outcome."""
    config = build_config({"train": {"learning_rate": 2e-3}} | (settings or {}), TrainConfig)
    RunFolder(tmp_path / "run").create(config, config, {"finished": True})
    text = summary(Result(tmp_path / "run", **result), ["train.seed=1"])
    assert all(len(line) <= 80 for line in text.splitlines() if "/" not in line)
    return " ".join(re.sub(r" \\$", "", line).strip() for line in text.splitlines())


SPEARMAN = {"valid_before": {"spearman": 0.5}, "valid_after": {"spearman": 0.7}}
BETTER = SPEARMAN | {"best_score": 0.75, "best_step": 30, "valid_word_overlap": 0.25}
TEST = {"test_before": 0.5, "test_after": 0.625, "test_word_overlap": 0.25}


def test_a_model_that_is_better_is_shown_without_a_warning(tmp_path: Path) -> None:
    text = summary_of(tmp_path, **BETTER, **TEST)
    assert text.startswith(
        "Best    Spearman 75.00 on validation, at step 30 (50.00 before training) "
        "Test    Spearman 50.00 before training, 62.50 after (shared words alone: 25.00) Saved "
    )
    assert "Warning" not in text
    assert f"python -m angle.report {tmp_path}/run" in text


def test_a_model_that_is_worse_than_before_is_said_first_and_not_recommended(tmp_path: Path) -> None:
    text = summary_of(tmp_path, **BETTER | TEST | {"best_score": 0.375, "test_after": 0.3125})
    assert text.startswith(
        "Warning: training has not helped: Spearman on validation was 50.00 before, and is 37.50 after it; Spearman on "
        "the test set was 50.00 before, and is 31.25 after it. Try train.learning_rate=0.0002, a tenth of this run's. "
        "Kept "
    )
    assert text.endswith(" Next    python train.py train.seed=1 train.learning_rate=0.0002")


def test_a_model_that_did_not_change_needs_a_higher_rate(tmp_path: Path) -> None:
    text = summary_of(tmp_path, **BETTER | {"best_score": 0.5})
    assert text.startswith("Warning: training has not helped. Try train.learning_rate=0.006, or more steps. Kept ")
    assert text.endswith(" Next    python train.py train.seed=1 train.learning_rate=0.006")


def test_a_model_that_is_worse_on_the_test_set_alone_is_said(tmp_path: Path) -> None:
    text = summary_of(tmp_path, **BETTER | TEST | {"test_after": 0.375})
    assert text.startswith(
        "Warning: training has not helped everywhere: Spearman on the test set was 50.00 before, and is 37.50 after "
    )
    assert "convert.py" in text


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        ({"best_metric": "loss", "best_score": 1.0, "valid_before": {"loss": 2.0}}, 1.0),
        ({"best_metric": "loss", "best_score": 2.0, "valid_before": {"loss": 1.0}}, -1.0),
        ({"best_metric": None, "valid_after": {"loss": 1.5}, "valid_before": {"loss": 1.0}}, -0.5),
        ({"best_metric": "triplet_accuracy", "best_score": 1.0, "valid_before": {"triplet_accuracy": 1.0}}, 1.0),
        ({"test_before": 0.25, "test_after": 0.5}, 0.25),
        ({}, None),
    ],
)
def test_gain_is_that_of_what_was_measured(tmp_path: Path, outcome: dict[str, Any], expected: float | None) -> None:
    assert gain(Result(tmp_path, **outcome)) == expected


def test_a_model_that_is_no_better_than_shared_words_is_said_first(tmp_path: Path) -> None:
    text = summary_of(tmp_path, **BETTER | {"valid_word_overlap": 0.875})
    assert text.startswith(
        "Warning: counting the words that two texts share does no worse (87.50 on validation, the model 75.00), so the "
        "model needs more rows or more steps. Best "
    )


def test_a_run_that_measured_nothing_says_so_first_and_how_to_measure(tmp_path: Path) -> None:
    text = summary_of(tmp_path)
    assert text.startswith("Warning: nothing was measured, so it is unknown whether training has helped. ")
    assert "Next    python train.py train.seed=1 data.valid_split=0.05 python evaluate.py" in text


def test_metrics_that_chose_no_model_are_shown(tmp_path: Path) -> None:
    values = {"loss": 2.0, "loss/ibn": 1.0, "triplet_accuracy": 0.5}
    better = {"loss": 1.0, "loss/ibn": 0.5, "triplet_accuracy": 0.75}
    text = summary_of(tmp_path, best_metric=None, valid_before=values, valid_after=better)
    assert text.startswith(
        "Valid   loss 2.000 before training, 1.000 after; triplet accuracy 50.00 before training, 75.00 after. "
        "train.best_metric=loss would keep the best model. Saved "
    )


def test_after_espresso_the_grid_is_offered(tmp_path: Path) -> None:
    assert "ese_grid=true" not in summary_of(tmp_path / "plain", **BETTER)
    text = summary_of(tmp_path / "ese", {"ese": {"enabled": True}}, **BETTER)
    assert re.search(r"evaluate\.py \S+ tasks=\[stsb\] ese_grid=true", re.sub(r" \\ ", " ", text))


FILES = {"train": {"name_or_path": "t.jsonl"}, "valid": {"name_or_path": "v.jsonl"}}


@pytest.mark.parametrize("data_format", ["A", "B", "C"])
@pytest.mark.parametrize(
    "data",
    [{}, {"valid": FILES["valid"]}, {"valid_sts": FILES["valid"]}, {"valid_split": 0.1}, {"streaming": True}],
    ids=lambda data: "+".join(data),
)
@pytest.mark.parametrize("outcome", [{}, BETTER, BETTER | {"best_score": 0.25}], ids=["unmeasured", "better", "worse"])
def test_what_is_suggested_can_be_typed(
    tmp_path: Path, data_format: str, data: dict[str, Any], outcome: dict[str, Any]
) -> None:
    settings = {"data": {"train": FILES["train"], **data}, "data_format": {"name": data_format}}
    words = hydra_overrides(build_config(settings | {"train": {"max_steps": 9}}, TrainConfig))
    config = build_config(settings | {"train": {"max_steps": 9, "learning_rate": 2e-3}}, TrainConfig)
    config.loss = config.loss.for_format(data_format)
    RunFolder(tmp_path / "run").create(config, config, {"finished": True})
    printed = re.sub(r" \\\n +", " ", summary(Result(tmp_path / "run", **outcome), words))
    commands = [shlex.split(line)[2:] for line in re.findall(r"python train\.py .*", printed)]
    for command in commands:
        for job in itertools.product(*(expand(word) for word in command if word != "-m")):
            build_config(unflatten(dict(job)), TrainConfig)


def expand(word: str) -> list[tuple[str, Any]]:
    """Return a setting with each of its values."""
    name, _, values = word.partition("=")
    return [(name, yaml.safe_load(value)) for value in (values.split(",") if "[" not in values else [values])]


@pytest.mark.parametrize(
    ("data_format", "weights", "swept"),
    [
        ("A", {}, {"loss.ibn_w": "10,20,30", "loss.angle_tau": "1,20"}),
        ("A", {"ibn_w": 0.0}, {"loss.angle_tau": "1,20", "loss.cosine_tau": "5,10,20"}),
        ("A", {"ibn_w": 0.0, "angle_w": 0.0}, {"loss.cosine_tau": "5,10,20"}),
        ("B", {"angle_w": 0.0}, {"loss.ibn_w": "10,20,30"}),
        ("C", {}, {"loss.ibn_tau": "10,20,50"}),
    ],
)
def test_only_terms_of_the_loss_are_swept(data_format: str, weights: dict[str, float], swept: dict[str, str]) -> None:
    config = TrainConfig()
    config.data_format.name = data_format
    config.loss = LossConfig(**weights).for_format(data_format)
    assert suggested_sweep(config) == swept


@pytest.mark.slow
def test_the_log_ends_as_the_console_does(tmp_path: Path) -> None:
    words = [*sample_files(tmp_path), "train.max_steps=4", "train.batch_size=8", "train.learning_rate=0.5"]
    done = start("train.py", *words, "train.logging_steps=2", "train.output_dir=run", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    log = (tmp_path / "run" / "train.log").read_text()
    printed = re.sub(r"^\d{4}-\d\d-\d\d [\d:,]+ [A-Z]+ ", "", log, flags=re.MULTILINE)
    assert printed == done.stdout
    assert "\nSaved   run/" in printed
    before = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert before.keys() == {"step", "valid/spearman", "valid/pearson"}
    assert f"step 0  validation: spearman {100 * before['valid/spearman']:.2f}\n" in printed


def test_notes_are_kept_for_the_summary(tmp_path: Path) -> None:
    sample_files(tmp_path)
    train = {"max_steps": 1, "warmup_steps": 5, "output_dir": str(tmp_path / "run"), "learning_rate": 0.5}
    data = {"train": {"name_or_path": str(tmp_path / "train.jsonl")}}
    result = fit(build_config({"data": data, "train": train}, TrainConfig))
    notes = RunFolder(result.folder).record()["notes"]
    assert any(note.startswith("train.warmup_steps=5 does not end within") for note in notes)
    worse = dataclasses.replace(result, test_before=0.5, test_after=0.25)
    assert "a tenth of this run's, and see the notes at the start of train.log." in " ".join(summary(worse).split())
