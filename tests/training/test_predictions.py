"""What a run saves of its validation rows, from which its scores follow, and its pages are made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import sample_files, sample_rows, write_jsonl

from angle import AnglE, DataError, TrainConfig, build_config, fit
from angle.evaluation import predictions
from angle.evaluation.predictions import AFTER, BEFORE, Predictions


def train(folder: Path, *, data: dict[str, str], **settings: Any) -> Path:
    values = {"max_steps": 6, "batch_size": 16, "eval_steps": 2, "output_dir": str(folder / "run")} | settings
    sources = {name: {"name_or_path": str(folder / file)} for name, file in data.items()}
    return fit(build_config({"data": sources, "train": values}, TrainConfig)).folder


def measured(run: Path, name: str) -> dict[int, float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[f"valid/{name}"] for line in lines if f"valid/{name}" in line}


def load(run: Path, name: str) -> Predictions:
    loaded = Predictions.load(run, name)
    assert loaded is not None
    return loaded


def test_scores_follow_from_what_is_saved(tmp_path: Path) -> None:
    """Before training, and of the best model, although others came after it."""
    sample_files(tmp_path)
    data = {"train": "train.jsonl", "valid_sts": "valid_sts.jsonl"}
    run = train(tmp_path, data=data, learning_rate=0.02, max_steps=12)
    scores, result = measured(run, "spearman"), json.loads((run / "run.json").read_text())["result"]
    before, after = load(run, BEFORE), load(run, AFTER)
    assert (before.step, after.step) == (0, result["best_step"])
    assert (before.rows.metric(), after.rows.metric()) == (scores[0], result["best_score"])
    rows = [json.loads(line) for line in (tmp_path / "valid_sts.jsonl").read_text().splitlines()]
    model = AnglE.from_pretrained(str(run), pooling_strategy="avg")
    assert after.shown_rows.tolist() != sorted(after.shown_rows.tolist())
    for row, texts in zip(after.shown_rows, after.shown_texts, strict=True):
        pair = [rows[row]["text1"], rows[row]["text2"]]
        assert [after.texts[text] for text in texts] == [text.lower() for text in pair]
        left, right = after.embeddings[texts].astype(float)
        assert left @ right == pytest.approx(after.rows.values[row], abs=2e-3)
        expected = model.encode(pair, to_numpy=True)[0]
        assert left == pytest.approx(expected / np.linalg.norm(expected), abs=2e-3)


@pytest.mark.parametrize(("data_format", "metric"), [("B", "in_batch_accuracy"), ("C", "in_batch_accuracy")])
def test_without_a_best_model_the_last_one_is_looked_at(tmp_path: Path, data_format: str, metric: str) -> None:
    sample_files(tmp_path, data_format)
    write_jsonl(tmp_path / "valid.jsonl", sample_rows(data_format, "validation", 24))
    run = train(tmp_path, data={"train": "train.jsonl", "valid": "valid.jsonl"})
    after = load(run, AFTER)
    assert (after.step, after.format, after.metric) == (6, data_format, metric)
    assert after.rows.metric() == measured(run, metric)[6]
    assert after.shown_texts.shape == (24, {"B": 3, "C": 2}[data_format])


def test_what_is_saved_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictions, "MAX_ROWS", 10)
    monkeypatch.setattr(predictions, "MAX_NUMBERS", 4 * 128)
    monkeypatch.setattr(predictions, "MAX_CHARACTERS", 7)
    sample_files(tmp_path)
    after = load(train(tmp_path, data={"train": "train.jsonl", "valid_sts": "valid_sts.jsonl"}), AFTER)
    assert (len(after.shown_rows), len(after.rows.values), len(after.embeddings)) == (10, 20, 4)
    assert max(map(len, after.texts)) == 7


def test_nothing_is_saved_where_nothing_is_validated(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", [{"text1": f"a {n}", "text2": f"b {n}", "label": n % 2} for n in range(32)])
    run = train(tmp_path, data={"train": "train.jsonl"})
    assert Predictions.load(run, BEFORE) is None
    assert not (run / "predictions").exists()


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    sample_files(tmp_path)
    run = train(tmp_path, data={"train": "train.jsonl", "valid_sts": "valid_sts.jsonl"}, max_steps=2)
    file = run / "predictions" / "after.safetensors"
    whole = file.read_bytes()
    for damaged in (b"", whole[:-8], b"{}" + whole, whole.replace(b"metric", b"mertic")):
        file.write_bytes(damaged)
        with pytest.raises(DataError, match=r"after\.safetensors is damaged"):
            Predictions.load(run, AFTER)
