"""Runs that are measured on queries and passages: what chooses the model, what is saved, and what a resume checks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import dying_at, repeatable_metrics, sample_rows, start_here, write_jsonl
from retrieval_sets import write_set

from angle import DataError, TrainConfig, build_config, fit
from angle.config import ConvertConfig, ModelConfig
from angle.evaluation.predictions import AFTER, BEFORE, Predictions
from angle.export.sentence_transformers import convert


def prepare(folder: Path) -> None:
    """Write training pairs, and a set whose queries ask for the second text of a pair."""
    write_jsonl(folder / "train.jsonl", sample_rows("C", "train", 64))
    pairs = sample_rows("C", "validation", 30)
    corpus = {f"d{number}": pair["positive"] for number, pair in enumerate(pairs)}
    queries = {f"q{number}": pair["text"] for number, pair in enumerate(pairs)}
    same = {
        (query, passage)
        for query, pair in zip(queries, pairs, strict=True)
        for passage, text in corpus.items()
        if text == pair["positive"]
    }
    write_set(folder / "set", corpus, queries, [(*pair, 1) for pair in sorted(same)])


def settings(folder: Path, name: str = "run", **train: Any) -> TrainConfig:
    train = {"max_steps": 6, "batch_size": 16, "eval_steps": 2, "save_steps": 2, "learning_rate": 0.01} | train
    data = {"train": {"name_or_path": str(folder / "train.jsonl")}}
    data["valid_retrieval"] = {"name_or_path": str(folder / "set")}
    return build_config({"data": data, "train": train | {"output_dir": str(folder / name)}}, TrainConfig)


def test_ndcg_chooses_the_best_model(tmp_path: Path) -> None:
    prepare(tmp_path)
    result = fit(settings(tmp_path))
    assert result.best_metric == "ndcg@10"
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    measured = {line["step"]: line for line in lines if "valid/ndcg@10" in line}
    scores = {step: line["valid/ndcg@10"] for step, line in measured.items()}
    assert list(scores) == [0, 2, 4, 6]
    assert result.best_score == max(list(scores.values())[1:]) == scores[result.best_step or 0]
    assert {"valid/mrr@10", "valid/map@100", "valid/recall@100"} <= measured[0].keys()
    before, after = (Predictions.load(tmp_path / "run", name) for name in (BEFORE, AFTER))
    assert before is not None
    assert after is not None
    assert after.rows.metric() == pytest.approx(result.best_score)
    assert before.rows.metric() == pytest.approx(scores[0])
    queries = [json.loads(line)["text"] for line in (tmp_path / "set" / "queries.jsonl").read_text().splitlines()]
    for row, texts in zip(after.shown_rows, after.shown_texts, strict=True):
        assert after.texts[texts[0]] == queries[row].lower()
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["rows"]["valid_retrieval"] == 30
    assert len(record["data"]["valid_retrieval"]) == 64
    config = (tmp_path / "run" / "config.yaml").read_text()
    assert "best_metric: ndcg@10" in config


def test_other_judgements_do_not_resume_a_run(tmp_path: Path) -> None:
    prepare(tmp_path)
    with dying_at(5):
        fit(settings(tmp_path))
    path = tmp_path / "set" / "qrels" / "dev.tsv"
    path.write_text(path.read_text().replace("\t1\n", "\t2\n", 1))
    with pytest.raises(DataError, match=r"^The data has changed since the run"):
        fit(settings(tmp_path))


@pytest.mark.slow
def test_a_resumed_run_measures_as_a_straight_one(tmp_path: Path) -> None:
    prepare(tmp_path)
    fit(settings(tmp_path, "straight"))
    with dying_at(5):
        fit(settings(tmp_path))
    fit(settings(tmp_path))
    lines = [repeatable_metrics((tmp_path / name / "metrics.jsonl").read_text()) for name in ("straight", "run")]
    assert lines[0] == lines[1]


@pytest.mark.slow
def test_patience_watches_ndcg_and_a_page_shows_it(tmp_path: Path) -> None:
    prepare(tmp_path)
    result = fit(settings(tmp_path, max_steps=40, patience=1, learning_rate=0.5, warmup_steps=0))
    assert result.stopped_early
    done = start_here("-m", "angle.report", "run", "--no-pictures", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "nDCG@10" in (tmp_path / "run" / "report" / "report.html").read_text()


def test_labelled_pairs_choose_before_queries(tmp_path: Path) -> None:
    prepare(tmp_path)
    config = settings(tmp_path)
    assert config.train.best_metric == "ndcg@10"
    data = {"valid_sts": {"name_or_path": "dev.jsonl"}, "valid_retrieval": {"name_or_path": "set"}}
    assert build_config({"data": data}, TrainConfig).train.best_metric is None


@pytest.mark.slow
@pytest.mark.usefixtures("unverified")
def test_a_card_tells_of_queries(tmp_path: Path) -> None:
    prepare(tmp_path)
    fit(settings(tmp_path, max_steps=2))
    convert(ConvertConfig(ModelConfig(str(tmp_path / "run"))))
    card = (tmp_path / "run" / "sentence_transformers" / "README.md").read_text()
    assert "| 30 validation queries that are not public, step 2 |" in card


@pytest.mark.slow
def test_a_sweep_compares_by_ndcg(tmp_path: Path) -> None:
    prepare(tmp_path)
    words = ["data=files", "data.train.name_or_path=train.jsonl", "data.valid_retrieval.name_or_path=set"]
    words += ["train.max_steps=2", "train.batch_size=16", "loss.ibn_tau=5,50", "hydra.sweep.dir=sweep"]
    done = start_here("train.py", "-m", *words, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "nDCG@10" in done.stdout
    assert "Spearman" not in done.stdout
    assert "Verdict" in done.stdout
    assert "tasks=[nano_beir]" in done.stdout
