"""STS tasks: scored pairs, the word-overlap baseline, and the printed table."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_jsonl

from angle.config import DataConfig, EvaluateConfig, ModelConfig, PoolingConfig, SourceConfig, TrainConfig
from angle.config.build import save_config
from angle.data.corpus import Corpus
from angle.errors import ConfigError, DataError
from angle.evaluation.metrics import best_accuracy
from angle.evaluation.report import average, evaluate, expand_tasks, table
from angle.evaluation.sts import HUB_TASKS, PairScores, load_sts, score_pairs, task_source, word_overlap
from angle.modeling.encoder import Encoder

PAIRS = [
    ("the dog sleeps", "the dog sleeps", 5.0),
    ("the dog sleeps", "the cat sleeps", 3.0),
    ("the cat sleeps", "a woman eats the apple", 0.0),
    ("two birds", "the dog sleeps", 1.0),
    ("a woman eats the apple", "the woman eats", 4.0),
]


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder.load(ModelConfig(), PoolingConfig("avg")).eval()


@pytest.fixture
def pairs_file(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    rows = [{"text1": one, "text2": other, "label": label} for one, other, label in PAIRS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def corpus(pairs_file: Path, encoder: Encoder) -> Corpus:
    return load_sts(SourceConfig(str(pairs_file)), "test", encoder.tokenizer)


def test_pairs_are_scored_in_their_order(encoder: Encoder, corpus: Corpus) -> None:
    done: list[int] = []
    scored = score_pairs(encoder, corpus, 2, done.append)
    left, right = (encoder.encode([pair[side] for pair in PAIRS]).double() for side in (0, 1))
    np.testing.assert_allclose(scored.scores["cosine"], torch.cosine_similarity(left, right), atol=1e-6)
    np.testing.assert_allclose(scored.scores["euclidean"], -(left - right).norm(dim=-1), atol=1e-5)
    assert scored.scores["cosine"][0] == pytest.approx(1.0)
    assert scored.labels.tolist() == [5.0, 3.0, 0.0, 1.0, 4.0]
    assert sum(done) == 5  # of ten texts, five are different


def test_metrics_of_a_task() -> None:
    cosine = np.array([0.9, 0.1, 0.7, 0.2])
    other = np.array([1.0, 2.0, 3.0, 5.0])
    scored = PairScores(np.array([5.0, 0.0, 3.0, 1.0]), {"cosine": cosine, "dot": other})
    metrics = scored.metrics(positive_above=2.0)
    assert scored.spearman == metrics["spearman_cosine"] == pytest.approx(1.0)
    assert metrics["spearman_dot"] == pytest.approx(-0.4)
    assert metrics["pearson_cosine"] == pytest.approx(np.corrcoef(cosine, scored.labels)[0, 1])
    assert metrics["accuracy"] == 1.0
    assert metrics["accuracy_threshold"] == pytest.approx(0.45)
    assert metrics["pairs"] == 4
    assert scored.metrics(positive_above=4.0)["accuracy_threshold"] == pytest.approx(0.8)


def test_a_label_is_not_above_itself(pairs_file: Path, encoder: Encoder, tmp_path: Path) -> None:
    """Labels are kept in float32, where 0.8 is a little more than in float64."""
    path = write_jsonl(
        tmp_path / "tenths.jsonl",
        [
            {"text1": left, "text2": right, "label": label / 10}
            for (left, right, _), label in zip(PAIRS, [8, 8, 1, 2, 9], strict=True)
        ],
    )
    scored = score_pairs(encoder, load_sts(SourceConfig(str(path)), "test", encoder.tokenizer))
    for bound, above in ((0.8, 1), (0.1, 4), (0.2, 3)):
        called = scored.labels > bound
        expected = best_accuracy(scored.scores["cosine"], called)[0]
        assert called.sum() == above
        assert scored.metrics(positive_above=bound)["accuracy"] == expected


def test_word_overlap_by_hand(encoder: Encoder, corpus: Corpus) -> None:
    special = set(encoder.tokenizer.tokenizer.all_special_ids)
    bags = [[set(encoder.tokenizer.tokenizer.tokenize(text)) for text in pair[:2]] for pair in PAIRS]
    overlap = [len(one & other) / len(one | other) for one, other in bags]
    assert overlap[0] == 1.0
    assert overlap[3] < overlap[4]
    ranks = {value: np.mean([number for number, v in enumerate(sorted(overlap), 1) if v == value]) for value in overlap}
    expected = np.corrcoef([ranks[value] for value in overlap], [5, 3, 1, 2, 4])[0, 1]
    assert word_overlap(corpus, special) == pytest.approx(float(expected))


def test_special_tokens_are_no_shared_words(tmp_path: Path, encoder: Encoder) -> None:
    # With [CLS] and [SEP] counted, the one-word pair would share 2 of 4 and the longer one 3 of 9.
    path = tmp_path / "pairs.csv"
    path.write_text("text1,text2,label\ndog,cat,0\nthe dog sleeps on,the cat eats it,1\ndog,dog,2\n")
    corpus = load_sts(SourceConfig(str(path)), "test", encoder.tokenizer)
    assert word_overlap(corpus, set(encoder.tokenizer.tokenizer.all_special_ids)) == pytest.approx(1.0)
    assert word_overlap(corpus, set()) < 1


def test_labels_that_are_all_the_same_are_refused(tmp_path: Path, encoder: Encoder) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("text1,text2,label\ndog,cat,1\ncat,dog,1\n")
    with pytest.raises(DataError) as error:
        load_sts(SourceConfig(str(path)), "test", encoder.tokenizer)
    assert str(error.value) == ("data.test: every label is 1, so no correlation exists; give graded or mixed labels.")


def test_where_tasks_come_from(pairs_file: Path) -> None:
    source = task_source("sick", {}, {})
    assert (source.names(), source.split) == (["mteb/sickr-sts"], "test")
    assert source.columns == {"text1": "sentence1", "text2": "sentence2", "label": "score"}
    own = task_source(str(pairs_file), {"label": "score"}, {"yes": 1.0})
    assert (own.names(), own.columns, own.label_map) == ([str(pairs_file)], {"label": "score"}, {"yes": 1.0})
    with pytest.raises(ConfigError) as error:
        task_source("stsbb", {}, {})
    assert str(error.value) == (
        "tasks=stsbb is not known; did you mean stsb? Choose from sts12, sts13, sts14, sts15, sts16, stsb, sickr, sts, "
        "or give a file in format A."
    )


def test_sts_is_seven_tasks() -> None:
    seven = ["sts12", "sts13", "sts14", "sts15", "sts16", "stsb", "sickr"]
    assert expand_tasks(["a.jsonl", "sts"]) == ["a.jsonl", *seven]


def row(value: float) -> dict[str, float]:
    names = ("cosine", "dot", "manhattan", "euclidean")
    metrics = {f"{kind}_{name}": 0.5 for kind in ("spearman", "pearson") for name in names}
    return metrics | {"spearman_cosine": value, "accuracy": 0.875, "accuracy_threshold": 0.25, "pairs": 12.0}


@pytest.mark.parametrize("last", ["sickr", "sick"])
def test_the_average_is_over_all_seven_tasks_and_only_them(last: str) -> None:
    results = {name: row(0.1 * number) for number, name in enumerate(HUB_TASKS, 1)}
    results = {(last if name == "sickr" else name): metrics for name, metrics in results.items()}
    assert average(results) == pytest.approx(0.4)
    assert average({**results, "mine.csv": row(0.9)}) == pytest.approx(0.4)
    assert re.search(r"^average +40\.00$", table({**results, "mine.csv": row(0.9)}), re.MULTILINE)
    for name in results:
        fewer = {key: metrics for key, metrics in results.items() if key != name}
        assert average(fewer) is None
        assert "average" not in table(fewer)


def test_table_shows_correlations_times_100_under_their_heads() -> None:
    metrics = row(0.81239) | {"pearson_euclidean": -0.031}
    _, heads, line = table({"stsb": metrics}).splitlines()
    similarities = ["cosine", "dot", "Manhattan", "Euclidean"]
    assert heads.split() == ["task", "pairs", *similarities, *similarities, "accuracy"]
    assert line.split() == ["stsb", "12", "81.24", *["50.00"] * 6, "-3.10", "87.50"]
    ends = [[match.end() for match in re.finditer(r"\S+", text)] for text in (heads, line)]
    assert ends[0][1:] == ends[1][1:]


def test_evaluate_writes_what_it_measured(pairs_file: Path, tmp_path: Path, encoder: Encoder, corpus: Corpus) -> None:
    config = EvaluateConfig(
        pooling=PoolingConfig("avg"), tasks=[str(pairs_file)], positive_above=2.5, output_dir=str(tmp_path / "out")
    )
    found = evaluate(config)
    expected = score_pairs(encoder, corpus).metrics(2.5)
    assert found.results[str(pairs_file)] == pytest.approx(expected)
    assert found.mean_spearman == pytest.approx(expected["spearman_cosine"])
    saved = json.loads(found.path.read_text())
    assert saved["tasks"] == found.results
    assert saved["average_spearman"] is None
    lines = (tmp_path / "out" / saved["pairs"][str(pairs_file)]).read_text().splitlines()
    assert lines[0] == "label,cosine,dot,manhattan,euclidean"
    assert [float(line.split(",")[0]) for line in lines[1:]] == [5.0, 3.0, 0.0, 1.0, 4.0]
    with pytest.raises(ConfigError, match="holds results already"):
        evaluate(config)


def only_json(text: str) -> dict[str, object]:
    """Return what a text says, which may not use words that Python alone takes for JSON."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize(("positive_above", "threshold"), [(9.0, math.inf), (-1.0, -math.inf)])
def test_a_threshold_without_an_end_is_null_in_the_file(
    pairs_file: Path, tmp_path: Path, positive_above: float, threshold: float
) -> None:
    found = evaluate(EvaluateConfig(tasks=[str(pairs_file)], positive_above=positive_above, output_dir=str(tmp_path)))
    (metrics,) = found.results.values()
    assert (metrics["accuracy"], metrics["accuracy_threshold"]) == (1.0, threshold)
    saved = only_json(found.path.read_text())["tasks"][str(pairs_file)]
    assert saved == {**metrics, "accuracy_threshold": None}


def test_results_say_how_texts_reached_the_model(pairs_file: Path, tmp_path: Path) -> None:
    model = ModelConfig(max_length=9, prompt="Query: {text}")
    found = evaluate(EvaluateConfig(model, PoolingConfig("max"), [str(pairs_file)], output_dir=str(tmp_path)))
    assert (found.contract.pooling, found.contract.max_length, found.contract.prompt) == ("max", 9, "Query: {text}")
    saved = only_json(found.path.read_text())
    assert (saved["pooling"], saved["max_length"], saved["prompt"]) == ("max", 9, "Query: {text}")


@pytest.mark.parametrize("below", ["", "/deep/down"])
def test_a_file_is_no_folder_for_results(pairs_file: Path, monkeypatch: pytest.MonkeyPatch, below: str) -> None:
    monkeypatch.setattr(Encoder, "load", lambda *_: pytest.fail("something is computed before"))
    with pytest.raises(ConfigError) as error:
        evaluate(EvaluateConfig(tasks=["stsb"], output_dir=f"{pairs_file}{below}"))
    assert str(error.value) == (
        f"output_dir={pairs_file}{below} cannot be a folder: {pairs_file} is a file; give a new folder."
    )


def failure(config: EvaluateConfig) -> str:
    """Return what is said of a task that cannot be measured."""
    with pytest.raises(DataError) as error:
        evaluate(config)
    return str(error.value)


def test_what_a_message_says_to_type_works(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("s1,s2,score\ndog,cat,low\ndog,dog,high\n")
    config = EvaluateConfig(tasks=[str(path)], output_dir=str(tmp_path / "out"))
    assert failure(config) == (
        f"tasks: {path} has the columns s1, s2, score, but format A needs text1, text2, label. "
        "Rename them: 'columns={text1: s1, text2: s2, label: score}'"
    )
    config.columns = {"text1": "s1", "text2": "s2", "label": "score"}
    assert failure(config) == (
        f"tasks: {path} row 1: label is 'low', which is not a number (2 such rows); give numbers, or map names: "
        "'label_map={low: NUMBER, high: NUMBER}'."
    )
    config.label_map = {"low": 1.0, "high": 1.0}
    assert failure(config) == (
        f"tasks: {path}: every label is 1, so no correlation exists; give graded or mixed labels."
    )
    config.label_map = {"low": 1.0, "high": 2.0}
    assert evaluate(config).results[str(path)]["pairs"] == 2


def test_the_run_s_own_test_set_can_be_renamed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("s1,s2,score\ndog,cat,low\ndog,dog,high\n")
    save_config(TrainConfig(data=DataConfig(test=SourceConfig(str(path)))), tmp_path / "config.yaml")
    own = Encoder.load(ModelConfig())
    monkeypatch.setattr(Encoder, "load", lambda *_: own)
    config = EvaluateConfig(ModelConfig(str(tmp_path)), output_dir=str(tmp_path / "out"))
    assert failure(config) == (
        f"the run's data.test: {path} has the columns s1, s2, score, but format A needs text1, text2, label. "
        "Rename them: 'columns={text1: s1, text2: s2, label: score}'"
    )
    config.columns = {"text1": "s1", "text2": "s2", "label": "score"}
    config.label_map = {"low": 1.0, "high": 2.0}
    assert list(evaluate(config).results) == [f"{path} (test)"]
