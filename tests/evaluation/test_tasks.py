"""What evaluate.py measures on, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from retrieval_sets import random_set
from sts_pairs import write_pairs

from angle.config import DataConfig, EvaluateConfig, ModelConfig, RetrievalConfig, SourceConfig, TrainConfig
from angle.config.record import write_config
from angle.errors import ConfigError, DataError
from angle.evaluation.report import evaluate
from angle.evaluation.tasks import expand_tasks, task_source
from angle.modeling.encoder import Encoder


@pytest.fixture
def pairs_file(tmp_path: Path) -> Path:
    return write_pairs(tmp_path)


def test_sources_of_tasks(pairs_file: Path) -> None:
    source = task_source("sick", EvaluateConfig())
    assert isinstance(source, SourceConfig)
    assert (source.names(), source.split) == (["mteb/sickr-sts"], "test")
    assert source.columns == {"text1": "sentence1", "text2": "sentence2", "label": "score"}
    file = task_source(str(pairs_file), EvaluateConfig(columns={"label": "score"}, label_map={"yes": 1.0}))
    assert isinstance(file, SourceConfig)
    assert (file.names(), file.columns, file.label_map) == ([str(pairs_file)], {"label": "score"}, {"yes": 1.0})
    with pytest.raises(ConfigError) as error:
        task_source("stsbb", EvaluateConfig())
    message = str(error.value)
    known = "sts12, sts13, sts14, sts15, sts16, stsb, sickr, sts, NanoClimateFEVER, "
    assert message.startswith(f"tasks=stsbb is not known; did you mean stsb? Choose from {known}")
    assert message.endswith(
        "NanoTouche2020, nano_beir, or give a file in format A, or a folder with queries, corpus and judgements."
    )


def test_sts_expands_to_seven_tasks() -> None:
    seven = ["sts12", "sts13", "sts14", "sts15", "sts16", "stsb", "sickr"]
    assert expand_tasks(["a.jsonl", "sts"]) == ["a.jsonl", *seven]
    assert len(expand_tasks(["nano_beir", "sts"])) == 13 + 7


def test_retrieval_sets_are_told_from_pairs(tmp_path: Path) -> None:
    random_set(tmp_path)
    config = EvaluateConfig(split="dev")
    assert task_source(str(tmp_path), config) == RetrievalConfig(str(tmp_path), split="dev")
    assert task_source("nanonq", EvaluateConfig()) == RetrievalConfig("zeta-alpha-ai/NanoNQ", split="train")
    assert task_source("BeIR/scifact", EvaluateConfig()) == RetrievalConfig("BeIR/scifact")
    assert isinstance(task_source("mteb/sts12-sts", EvaluateConfig()), SourceConfig)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"tasks": ["SET"], "ese_grid": True},
            "ese_grid=true scores pairs with labels, but SET has queries and passages: leave one out.",
        ),
        (
            {"tasks": ["stsb"], "split": "dev"},
            "split=dev has no effect on pairs with labels: leave it out, or add a task with queries and judgements.",
        ),
    ],
)
def test_settings_without_effect_are_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    random_set(tmp_path / "set")
    settings["tasks"] = [task.replace("SET", str(tmp_path / "set")) for task in settings["tasks"]]
    with pytest.raises(ConfigError) as error:
        evaluate(EvaluateConfig(**settings, output_dir=str(tmp_path / "out")))
    assert str(error.value).replace(str(tmp_path / "set"), "SET") == message


@pytest.mark.parametrize("below", ["", "/deep/down"])
def test_output_dir_that_is_a_file_is_refused(pairs_file: Path, monkeypatch: pytest.MonkeyPatch, below: str) -> None:
    monkeypatch.setattr(Encoder, "load", lambda *_: pytest.fail("something is computed before"))
    with pytest.raises(ConfigError) as error:
        evaluate(EvaluateConfig(tasks=["stsb"], output_dir=f"{pairs_file}{below}"))
    assert str(error.value) == (
        f"output_dir={pairs_file}{below} cannot be a folder: {pairs_file} is a file; give a new folder."
    )


def evaluation_error(config: EvaluateConfig) -> str:
    """Return the message about a task that cannot be measured."""
    with pytest.raises(DataError) as error:
        evaluate(config)
    return str(error.value)


def test_command_suggested_by_an_error_works(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("s1,s2,score\ndog,cat,low\ndog,dog,high\n")
    config = EvaluateConfig(tasks=[str(path)], output_dir=str(tmp_path / "out"))
    assert evaluation_error(config) == (
        f"tasks: {path} has the columns s1, s2, score, but format A needs text1, text2, label. "
        "Rename them: 'columns={text1: s1, text2: s2, label: score}'"
    )
    config.columns = {"text1": "s1", "text2": "s2", "label": "score"}
    assert evaluation_error(config) == (
        f"tasks: {path} row 1: label is 'low', which is not a number (2 such rows); give numbers, or map names: "
        "'label_map={low: NUMBER, high: NUMBER}'."
    )
    config.label_map = {"low": 1.0, "high": 1.0}
    assert evaluation_error(config) == (
        f"tasks: {path}: every label is 1, so no correlation exists; give graded or mixed labels."
    )
    config.label_map = {"low": 1.0, "high": 2.0}
    assert evaluate(config).results[str(path)]["pairs"] == 2


def test_the_run_s_own_test_set_can_be_renamed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("s1,s2,score\ndog,cat,low\ndog,dog,high\n")
    write_config(tmp_path, TrainConfig(data=DataConfig(test=SourceConfig(str(path)))))
    encoder = Encoder.load(ModelConfig())
    monkeypatch.setattr(Encoder, "load", lambda *_, **__: encoder)
    config = EvaluateConfig(ModelConfig(str(tmp_path)), output_dir=str(tmp_path / "out"))
    assert evaluation_error(config) == (
        f"the run's data.test: {path} has the columns s1, s2, score, but format A needs text1, text2, label. "
        "Rename them: 'columns={text1: s1, text2: s2, label: score}'"
    )
    config.columns = {"text1": "s1", "text2": "s2", "label": "score"}
    config.label_map = {"low": 1.0, "high": 2.0}
    assert list(evaluate(config).results) == [f"{path} (test)"]
