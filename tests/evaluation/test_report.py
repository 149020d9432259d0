"""What evaluate.py prints and saves."""

from __future__ import annotations

import csv
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import start_here
from retrieval_sets import random_set
from sts_pairs import write_pairs

from angle.config import EvaluateConfig, ModelConfig, PoolingConfig, SourceConfig
from angle.data.corpus import Corpus
from angle.data.retrieval_files import NANO_BEIR
from angle.errors import ConfigError
from angle.evaluation.evaluators.sts import load_sts, score_pairs
from angle.evaluation.report import average, evaluate, table
from angle.evaluation.retrieval_results import retrieval_average, retrieval_table
from angle.evaluation.tasks import HUB_TASKS
from angle.modeling.encoder import Encoder


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder.load(ModelConfig(), PoolingConfig("avg")).eval()


@pytest.fixture
def pairs_file(tmp_path: Path) -> Path:
    return write_pairs(tmp_path)


@pytest.fixture
def corpus(pairs_file: Path, encoder: Encoder) -> Corpus:
    return load_sts(SourceConfig(str(pairs_file)), "test", encoder.tokenizer)


def metrics_of_task(spearman: float) -> dict[str, float]:
    names = ("cosine", "dot", "manhattan", "euclidean")
    metrics = {f"{correlation}_{name}": 0.5 for correlation in ("spearman", "pearson") for name in names}
    metrics |= {"accuracy": 0.875, "accuracy_threshold": 0.25, "positive_above": 0.5}
    return metrics | {"spearman_cosine": spearman, "pairs": 12.0}


@pytest.mark.parametrize("last", ["sickr", "sick"])
def test_the_average_is_over_all_seven_tasks_and_only_them(last: str) -> None:
    results = {name: metrics_of_task(0.1 * number) for number, name in enumerate(HUB_TASKS, 1)}
    results = {(last if name == "sickr" else name): metrics for name, metrics in results.items()}
    assert average(results) == pytest.approx(0.4)
    assert average({**results, "mine.csv": metrics_of_task(0.9)}) == pytest.approx(0.4)
    assert re.search(r"^average +40\.00$", table({**results, "mine.csv": metrics_of_task(0.9)}), re.MULTILINE)
    for name in results:
        fewer = {key: metrics for key, metrics in results.items() if key != name}
        assert average(fewer) is None
        assert "average" not in table(fewer)


def test_table_shows_correlations_times_100_under_their_heads() -> None:
    metrics = metrics_of_task(0.81239) | {"pearson_cosine": -0.031}
    _, headers, line = table({"stsb": metrics}).splitlines()
    assert headers.split() == ["task", "pairs", "cosine", "dot", "Manhattan", "Euclidean", "cosine", "accuracy"]
    assert line.split() == ["stsb", "12", "81.24", *["50.00"] * 3, "-3.10", "87.50"]
    ends = [[match.end() for match in re.finditer(r"\S+", text)] for text in (headers, line)]
    assert ends[0][1:] == ends[1][1:]


def test_table_fits_80_columns_and_names_tasks_by_as_much_of_their_path_as_tells_them_apart() -> None:
    names = ["stsb", "/data/a/pairs.jsonl (test)", "/data/b/pairs.jsonl (test)", "a-very-long-name-of-a-task.jsonl"]
    lines = table({name: metrics_of_task(0.5) for name in names}).splitlines()
    assert max(map(len, lines)) <= 80
    assert [line[:15].strip() for line in lines[2:]] == [
        "stsb", "a/pai…nl (test)", "b/pai…nl (test)", "a-ver…ask.jsonl",
    ]  # fmt: skip


def test_positive_labels_are_counted_from_where_the_scale_has_its_middle() -> None:
    """On a scale from 1 to 5, a threshold of 0.5 would make an accuracy of 100 of any model."""
    lines = table({"sickr": metrics_of_task(0.5) | {"positive_above": 3.0}}).splitlines()
    assert lines[-1] == "Accuracy takes pairs as positive above a label of 3 in sickr."


def test_evaluate_writes_what_it_measured(pairs_file: Path, tmp_path: Path, encoder: Encoder, corpus: Corpus) -> None:
    config = EvaluateConfig(
        pooling=PoolingConfig("avg"), tasks=[str(pairs_file)], positive_above=2.5, output_dir=str(tmp_path / "out")
    )
    evaluation = evaluate(config)
    expected = score_pairs(encoder, corpus).metrics(2.5)
    assert evaluation.results[str(pairs_file)] == pytest.approx(expected)
    assert evaluation.score == pytest.approx(expected["spearman_cosine"])
    saved = json.loads(evaluation.path.read_text())
    assert saved["tasks"] == evaluation.results
    assert saved["average_spearman"] is None
    lines = (tmp_path / "out" / saved["pairs"][str(pairs_file)]).read_text().splitlines()
    assert lines[0] == "label,cosine,dot,manhattan,euclidean"
    assert [float(line.split(",")[0]) for line in lines[1:]] == [5.0, 3.0, 0.0, 1.0, 4.0]
    with pytest.raises(ConfigError, match="holds results already"):
        evaluate(config)


def strict_json(text: str) -> dict[str, object]:
    """Parse JSON, without the words that only Python accepts."""

    def refuse_constant(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse_constant)


@pytest.mark.parametrize(("positive_above", "threshold"), [(9.0, math.inf), (-1.0, -math.inf)])
def test_infinite_threshold_is_saved_as_null(
    pairs_file: Path, tmp_path: Path, positive_above: float, threshold: float
) -> None:
    evaluation = evaluate(
        EvaluateConfig(tasks=[str(pairs_file)], positive_above=positive_above, output_dir=str(tmp_path))
    )
    (metrics,) = evaluation.results.values()
    assert (metrics["accuracy"], metrics["accuracy_threshold"]) == (1.0, threshold)
    saved = strict_json(evaluation.path.read_text())["tasks"][str(pairs_file)]
    assert saved == {**metrics, "accuracy_threshold": None}


def test_results_record_how_texts_were_encoded(pairs_file: Path, tmp_path: Path) -> None:
    model = ModelConfig(max_length=9, prompt="Query: {text}")
    evaluation = evaluate(EvaluateConfig(model, PoolingConfig("max"), [str(pairs_file)], output_dir=str(tmp_path)))
    assert (
        evaluation.embedding_config.pooling,
        evaluation.embedding_config.max_length,
        evaluation.embedding_config.prompt,
    ) == (
        "max",
        9,
        "Query: {text}",
    )
    saved = strict_json(evaluation.path.read_text())
    assert (saved["pooling"], saved["max_length"], saved["prompt"]) == ("max", 9, "Query: {text}")


def test_retrieval_sets_beside_pairs(pairs_file: Path, tmp_path: Path) -> None:
    queries = random_set(tmp_path / "set", split="test")
    config = EvaluateConfig(tasks=[str(queries), str(pairs_file)], output_dir=str(tmp_path / "out"))
    evaluation = evaluate(config)
    assert list(evaluation.results) == [str(pairs_file), str(queries)]
    metrics = evaluation.results[str(queries)]
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    assert written["tasks"][str(queries)] == metrics
    assert written["queries"] == {str(queries): "queries-1.csv"}
    assert written["pairs"] == {str(pairs_file): "pairs-1.csv"}
    assert (metrics["queries"], metrics["passages"]) == (20, 150)
    spearman = evaluation.results[str(pairs_file)]["spearman_cosine"]
    assert evaluation.score == pytest.approx((spearman + metrics["ndcg@10"]) / 2)
    rows = list(csv.DictReader((tmp_path / "out" / "queries-1.csv").open()))
    assert np.mean([float(row["mrr@10"]) for row in rows]) == pytest.approx(metrics["mrr@10"])
    *_, headers, line = str(evaluation).splitlines()
    assert headers.split() == ["task", "queries", "nDCG@10", "MRR@10", "MAP@100", "recall@10", "recall@100"]
    assert line.split()[:3] == ["set", "20", f"{100 * metrics['ndcg@10']:.2f}"]
    assert evaluation.saved_files.endswith("with every pair's and query's scores beside it")


def test_the_average_is_over_all_thirteen_sets() -> None:
    zeros = dict.fromkeys(("mrr@10", "map@100", "recall@10", "recall@100"), 0.0)
    results = {name: zeros | {"queries": 50.0, "ndcg@10": 0.01 * number} for number, name in enumerate(NANO_BEIR, 1)}
    assert retrieval_average(results) == pytest.approx(0.07)
    lines = retrieval_table(results).splitlines()
    assert re.fullmatch(r"average +7\.00", lines[-1])
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("NanoQuoraRetrieval ") for line in lines)
    del results["NanoNQ"]
    assert retrieval_average(results) is None


@pytest.mark.slow
def test_a_sweep_of_evaluations_calls_scores_scores(tmp_path: Path) -> None:
    """They are of other tasks than pairs, or of several kinds."""
    random_set(tmp_path / "set", split="test")
    words = ["-m", "model=tiny", "tasks=[set]", "pooling=avg,max", "hydra.sweep.dir=sweep"]
    done = start_here("evaluate.py", *words, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^ +score$", done.stdout, re.MULTILINE)
    jobs = json.loads((tmp_path / "sweep" / "sweep.json").read_text())["jobs"]
    assert [job["metric"] for job in jobs] == [None, None]
