"""Data sources of presets, and what becomes of their columns, splits and labels when a command line names others."""

from __future__ import annotations

import pickle
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from composition import composed
from conftest import sample_files, start
from omegaconf import OmegaConf

from angle.cli import jobs
from angle.cli.jobs import JobRunner
from angle.cli.replaced_sources import _add_named_sources, _forget_if_replaced
from angle.config import NamedSourceConfig, SourceConfig, TrainConfig, TrainSourceConfig

STSB = {"text1": "sentence1", "text2": "sentence2", "label": "score"}
MINE = "data.train.name_or_path=mine.jsonl"


@cache
def preset(word: str) -> TrainConfig:
    """Return what a preset alone makes."""
    config: TrainConfig = composed(word)
    return config


@pytest.mark.parametrize("word", ["experiment=stsb_minilm", "data=stsb"])
def test_a_source_that_is_replaced_leaves_nothing_behind(word: str) -> None:
    before, after = preset(word), composed(word, MINE)
    assert before.data.train.columns == STSB
    assert after.data.train == TrainSourceConfig("mine.jsonl")
    assert replace(after, data=before.data) == before  # all else stays the preset's ...
    assert replace(after.data, train=before.data.train) == before.data  # ... and so do the other sources


@pytest.mark.parametrize("purpose", ["valid_sts", "test"])
@pytest.mark.parametrize("name", ["mine.csv", None])
def test_each_source_is_replaced_on_its_own(purpose: str, name: str | None) -> None:
    before = preset("data=nli_b").data
    after = composed("data=nli_b", f"data.{purpose}.name_or_path={name or 'null'}").data
    assert getattr(after, purpose) == SourceConfig(name)
    assert after == replace(before, **{purpose: SourceConfig(name)})


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([MINE, "++data.train.columns={text1: a}"], TrainSourceConfig("mine.jsonl", columns={"text1": "a"})),
        (["++data.train.columns={text1: a}", MINE], TrainSourceConfig("mine.jsonl", columns={"text1": "a"})),
        ([MINE, "++data.train.columns.text1=a"], TrainSourceConfig("mine.jsonl", columns={"text1": "a"})),
        ([MINE, "data.train.split=dev"], TrainSourceConfig("mine.jsonl", split="dev")),
        (["data.train={name_or_path: mine.jsonl, subset: s}"], TrainSourceConfig("mine.jsonl", subset="s")),
        (["data.train.name_or_path=[a.jsonl,b.jsonl]"], TrainSourceConfig(["a.jsonl", "b.jsonl"])),
        (["data=files", MINE], TrainSourceConfig("mine.jsonl")),
        ([MINE, "data.train.name_or_path=yours.jsonl"], TrainSourceConfig("yours.jsonl")),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else "",
)
def test_what_is_typed_of_the_new_source_stays(words: list[str], expected: SourceConfig) -> None:
    assert composed("experiment=stsb_minilm", *words).data.train == expected


@pytest.mark.parametrize("words", [["data.train.name_or_path=mteb/stsbenchmark-sts"], ["data.train.revision=v1"], []])
def test_a_source_that_is_not_replaced_keeps_what_belongs_to_it(words: list[str]) -> None:
    assert composed("data=stsb", *words).data.train.columns == STSB


def test_a_command_shows_what_it_will_use(tmp_path: Path) -> None:
    words = ["experiment=stsb_minilm", MINE, "--cfg", "job", "--package", "data.train"]
    done = start("train.py", *words, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "name_or_path: mine.jsonl\n" in done.stdout
    assert "sentence1" not in done.stdout


@pytest.mark.slow
def test_the_jobs_of_a_sweep_have_sources_of_their_own(tmp_path: Path) -> None:
    _, _, *held_out = sample_files(tmp_path)
    (tmp_path / "more.jsonl").write_text((tmp_path / "train.jsonl").read_text())
    words = ["data=stsb", *held_out, "data.train.name_or_path=train.jsonl,more.jsonl", "train.max_steps=1"]
    done = start("train.py", "-m", *words, folder=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_copy_in_another_process_replaces_sources_too(monkeypatch: pytest.MonkeyPatch) -> None:
    copied = pickle.dumps(JobRunner[TrainConfig](print, TrainConfig, set()))
    calls: list[str] = []
    monkeypatch.setattr(jobs, "let_words_replace_sources", lambda: calls.append("called"))
    assert pickle.loads(copied).is_copy
    assert calls == ["called"]


def test_several_sources_replace_one_and_are_replaced_by_one() -> None:
    several = ["data.train.sources.a.name_or_path=a.jsonl", "++data.train.sources.b={name_or_path: b.jsonl, weight: 2}"]
    train = composed("experiment=stsb_minilm", *several, "data.train.sources.a.weight=1").data.train
    sources = {"a": NamedSourceConfig("a.jsonl", weight=1.0), "b": NamedSourceConfig("b.jsonl", weight=2.0)}
    assert train == TrainSourceConfig(sources=sources)


def test_a_preset_s_sources_stay_where_another_is_added_or_one_is_changed() -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    presets = OmegaConf.structured(TrainConfig)
    presets.data.train.sources = {"a": NamedSourceConfig("a.jsonl")}
    words = ["data.train.sources.a.weight=2", "data.train.sources.b.name_or_path=b.jsonl", "~data.train.sources.c"]
    overrides = OverridesParser.create().parse_overrides(words)
    _forget_if_replaced("data.train", overrides, presets)
    _add_named_sources(overrides, presets)
    assert list(presets.data.train.sources) == ["a", "b"]
    assert presets.data.train.sources.a.name_or_path == "a.jsonl"
