"""Rows given in memory: stored with the run, for as long as they are needed, and never in the cache."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import datasets
import pytest
from conftest import snapshot

from angle import AnglE, ConfigError, DataError, fit
from angle.api.in_memory import data_argument, stored_temporarily
from angle.cache import cache_folder
from angle.config import TrainConfig
from angle.config.build import build_config, load_config
from angle.data import sample
from angle.data.sources import open_tables
from angle.training import loop
from angle.training.run_folder import RunFolder

STEPS = {"train": {"max_steps": 2, "save_steps": 1}}


def rows(split: str, count: int) -> datasets.Dataset:
    return datasets.Dataset.from_dict(sample.columns("A", split, count))


@pytest.fixture(scope="module")
def angle() -> AnglE:
    return AnglE.from_pretrained("tiny")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANGLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()


def test_files_may_be_given_as_a_list(angle: AnglE) -> None:
    assert data_argument([Path("a.jsonl"), "b.jsonl"], "train_ds", Path("x")).source.names() == ["a.jsonl", "b.jsonl"]


def test_a_stream_is_refused_by_fit_too(angle: AnglE) -> None:
    stream = datasets.IterableDataset.from_generator(lambda: iter([{"text": "a", "positive": "b"}]))
    with pytest.raises(DataError, match=r"^train_ds is a stream: give its name or its files, with config="):
        angle.fit(stream)


def test_rows_may_differ_in_their_columns_and_cells() -> None:
    rows = [{"text": "a", "positive": "b"}, {"text": "c", "positive": ("d", "e"), "negative": "f"}]
    with stored_temporarily(rows, "train_ds") as source:
        (table,) = open_tables(source, "train")
        assert [dict(row) for _, row in table.rows] == [
            {"text": "a", "positive": ["b"], "negative": None},
            {"text": "c", "positive": ["d", "e"], "negative": "f"},
        ]


def test_rows_to_evaluate_leave_nothing_behind(angle: AnglE, tmp_path: Path) -> None:
    assert angle.metrics(rows("test", 30)) == angle.metrics(rows("test", 30).to_list())
    assert not cache_folder("datasets").exists()
    assert snapshot(tmp_path / "tmp") == {}


def test_rows_to_train_on_stay_with_the_run_until_it_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(tmp_path / "run")
    arguments = {"valid_ds": rows("validation", 20).to_list(), "output_dir": str(run.path), "config": STEPS}
    straight = AnglE("tiny").fit(rows("train", 40), **arguments).result
    assert straight is not None
    assert not cache_folder("datasets").exists()
    assert not (run.path / "fit_data").exists()
    assert AnglE("tiny").fit(rows("train", 40), **arguments).result.already_finished

    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    for resume in (
        lambda: AnglE("tiny").fit(rows("train", 40), **arguments).result,
        lambda: fit(build_config({"train": {"resume": str(run.path)}}, TrainConfig)),
    ):
        shutil.rmtree(run.path)
        with monkeypatch.context() as patch:
            patch.setattr(loop, "_finish", interrupt)
            with pytest.raises(KeyboardInterrupt):
                AnglE("tiny").fit(rows("train", 40), **arguments)
        assert {path.name.split("-")[0] for path in (run.path / "fit_data").iterdir()} == {"train_ds", "valid_ds"}
        shutil.rmtree(run.checkpoints()[0])
        result = resume()
        assert not result.already_finished
        assert result.best_score == straight.best_score
    with pytest.raises(ConfigError, match=r"holds a run with other settings \(data\.train\.name_or_path: "):
        AnglE("tiny").fit(rows("train", 39), **arguments)
    assert len(list((run.path / "fit_data").iterdir())) == 2


def test_rows_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = AnglE("tiny").fit(rows("train", 20), config={"train": {"max_steps": 1}}).result
    assert result is not None
    assert result.folder.is_relative_to("runs")
    source = load_config(result.folder / "config.yaml").data.train.name_or_path
    assert Path(str(source)).parent == tmp_path / result.folder / "fit_data"


@pytest.mark.parametrize("train_ds", [rows("train", 20), rows("train", 20).to_list()], ids=["data set", "list"])
def test_a_run_that_does_not_start_leaves_nothing(angle: AnglE, tmp_path: Path, train_ds: Any) -> None:
    before = snapshot(tmp_path)
    same = [{"text1": "a", "text2": str(number), "label": 1.0} for number in range(4)]
    with pytest.raises(DataError, match=r"fit_data/valid_ds_for_callback-\w+: every label is 1|every label is 1"):
        angle.fit(train_ds, valid_ds_for_callback=same, output_dir=str(tmp_path / "a" / "run"), config=STEPS)
    after = {name: content for name, content in snapshot(tmp_path).items() if not name.startswith("cache")}
    assert after == {name: content for name, content in before.items() if not name.startswith("cache")}


def test_fit_leaves_other_files_in_the_output_dir_alone(angle: AnglE, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "data.txt").write_text("x")
    with pytest.raises(ConfigError, match="holds other files and no run"):
        angle.fit(rows("train", 20), output_dir=str(tmp_path / "thesis"), config=STEPS)
    assert snapshot(tmp_path / "thesis") == {"data.txt": b"x"}


@pytest.mark.parametrize("cell", ["a \ud83d", 10**400])
def test_cells_that_cannot_be_stored_are_refused(tmp_path, cell):
    with pytest.raises(DataError, match=r"^train_ds has a cell that cannot be stored: "):
        data_argument([{"text": cell, "positive": "b"}], "train_ds", tmp_path)
