"""Mining: what becomes a negative, compared with sentence-transformers, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import folders_of, launch_ranks, sample_rows, start_here, write_jsonl

from angle.config import JudgeConfig, MineConfig, ModelConfig, PoolingConfig, SourceConfig
from angle.errors import ConfigError, DataError
from angle.mining import mine as module
from angle.mining.mine import MINING_FILE, NEGATIVES_FILE, Mining, mine
from angle.modeling.encoder import Encoder

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"range_max": 20},
    "range": {"range_min": 3, "range_max": 12},
    "scores": {"range_max": 30, "max_score": 0.985, "min_score": 0.965},
    "absolute": {"range_max": 30, "absolute_margin": 0.001},
    "relative": {"range_max": 30, "relative_margin": 0.002, "range_min": 1},
}


def prepare(folder: Path, count: int = 40) -> tuple[SourceConfig, SourceConfig]:
    """Write rows, of which some share their text, and a corpus; return where they are."""
    rows = sample_rows("C", "train", count)
    rows[5]["text"] = rows[4]["text"]
    rows.append(dict(rows[0]))
    write_jsonl(folder / "rows.jsonl", rows)
    passages = [row["positive"] for row in sample_rows("C", "validation", 60)]
    write_jsonl(folder / "corpus.jsonl", [{"text": text} for text in passages])
    return SourceConfig(str(folder / "rows.jsonl")), SourceConfig(str(folder / "corpus.jsonl"))


def mined(folder: Path, **options: Any) -> Mining:
    rows, corpus = prepare(folder)
    options = {"rows": rows, "corpus": corpus, "pooling": PoolingConfig("avg")} | options
    return mine(MineConfig(output_dir=str(folder / "out"), **options))


def negatives_of(mining: Mining) -> dict[tuple[str, str], list[str]]:
    return {(row.query, row.positive): list(row.negatives) for row in mining.rows}


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_negatives_are_those_of_sentence_transformers(tmp_path: Path, name: str) -> None:
    from datasets import Dataset
    from sentence_transformers.util import mine_hard_negatives

    mining = mined(tmp_path, num_negatives=2, **OPTIONS[name])
    encoder = Encoder.load(ModelConfig(), PoolingConfig("avg")).eval()

    class Model:
        device = torch.device("cpu")

        def encode(self, texts: list[str], **_: Any) -> np.ndarray[Any, Any]:
            embeddings: np.ndarray[Any, Any] = F.normalize(encoder.encode(texts), dim=-1).numpy()
            return embeddings

        encode_query = encode_document = encode

        def similarity(self, left: Any, right: Any) -> torch.Tensor:
            return torch.as_tensor(left) @ torch.as_tensor(right).T

        def similarity_pairwise(self, left: Any, right: Any) -> torch.Tensor:
            return (torch.as_tensor(left) * torch.as_tensor(right)).sum(dim=-1)

    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    corpus = [json.loads(line)["text"] for line in (tmp_path / "corpus.jsonl").read_text().splitlines()]
    found = mine_hard_negatives(
        Dataset.from_list(rows), Model(), "text", "positive", corpus, num_negatives=2, output_format="n-tuple",
        output_scores=True, verbose=False, **OPTIONS[name],
    )  # fmt: skip
    theirs = {(row["text"], row["positive"]): [row["negative_1"], row["negative_2"]] for row in found}
    assert negatives_of(mining) == theirs
    assert len(theirs) > 10
    scores = {(row["text"], row["positive"]): row["scores"] for row in found}
    for row in mining.rows:
        assert list(row.scores) == pytest.approx(scores[row.query, row.positive], abs=1e-5)


def test_positives_and_equal_texts_are_no_negatives(tmp_path: Path) -> None:
    """Not even with every passage as a candidate, and from a corpus that has the queries too."""
    rows, corpus = prepare(tmp_path)
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    with (tmp_path / "corpus.jsonl").open("a") as file:
        file.writelines(json.dumps({"text": json.loads(line)["text"]}) + "\n" for line in lines)
    config = MineConfig(
        rows=rows, corpus=corpus, range_max=500, num_negatives=300, incomplete="keep", output_dir=str(tmp_path / "out")
    )
    mining = mine(config)
    positives: dict[str, set[str]] = {}
    for line in lines:
        row = json.loads(line)
        positives.setdefault(row["text"], set()).add(row["positive"])
    shared = json.loads(lines[4])["text"]
    assert len(positives[shared]) > 1
    for mined_row in mining.rows:
        assert not {mined_row.query, *positives[mined_row.query]} & set(mined_row.negatives)
        assert len(mined_row.negatives) == len(set(mined_row.negatives)) > 50
        assert np.all(np.diff(mined_row.scores[1:]) <= 0)
    assert mining.counts["of them with fewer negatives"] == len(mining.rows)
    assert mining.counts["rows that were repeated, left out"] >= 1
    pairs = [(row.query, row.positive) for row in mining.rows]
    assert sorted(pairs) == sorted((query, text) for query, texts in positives.items() for text in texts)


def test_known_positives_take_no_rank(tmp_path: Path) -> None:
    mining = mined(tmp_path, num_negatives=2, range_max=2)
    assert "rows dropped without enough negatives" not in mining.counts
    assert negatives_of(mining) == negatives_of(mined(tmp_path / "a", num_negatives=2, range_max=30))


def test_pieces_of_the_corpus_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = mined(tmp_path / "a")
    monkeypatch.setattr(module, "PASSAGES_AT_ONCE", 7)
    pieces = mined(tmp_path / "b")
    assert negatives_of(whole) == negatives_of(pieces)
    for first, second in zip(whole.rows, pieces.rows, strict=True):
        assert first.scores == pytest.approx(second.scores, abs=1e-5)


@pytest.fixture(autouse=True)
def _folders(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()


def test_random_negatives_depend_on_the_seed_alone(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    options = {"sampling": "random", "num_negatives": 2, "range_max": 20}
    first, same = mined(tmp_path / "a", **options), mined(tmp_path / "b", **options)
    other = mined(tmp_path / "c", seed=1, **options)
    assert negatives_of(first) == negatives_of(same) != negatives_of(other)


@pytest.mark.parametrize(
    ("options", "columns"),
    [
        ({"num_negatives": 1}, ["text", "positive", "negative", "scores"]),
        ({"num_negatives": 2}, ["text", "positive", "negative_1", "negative_2", "scores"]),
        ({"num_negatives": 2, "layout": "list"}, ["text", "positive", "negative", "scores"]),
    ],
)
def test_what_is_written(tmp_path: Path, options: dict[str, Any], columns: list[str]) -> None:
    mining = mined(tmp_path, **options)
    rows = [json.loads(line) for line in (tmp_path / "out" / NEGATIVES_FILE).read_text().splitlines()]
    assert list(rows[0]) == columns
    for row, written in zip(mining.rows, rows, strict=True):
        negatives = written.get("negative", [written.get("negative_1"), written.get("negative_2")])
        assert (negatives if isinstance(negatives, list) else [negatives]) == row.negatives
        assert written["scores"] == pytest.approx(list(row.scores), abs=1e-6)
    figures = json.loads((tmp_path / "out" / MINING_FILE).read_text())
    assert figures["rows"]["rows written"] == len(rows)
    assert figures["settings"]["num_negatives"] == options["num_negatives"]
    with pytest.raises(ConfigError, match=r"^output_dir=.*out holds negatives already; give a new folder\.$"):
        mined(tmp_path, **options)


def test_rows_without_enough_negatives(tmp_path: Path) -> None:
    """A limit that leaves some rows two, some one and some none."""
    scores = sorted(score for row in mined(tmp_path / "a", num_negatives=2).rows for score in row.scores[1:])
    options = {"num_negatives": 2, "min_score": scores[len(scores) // 2]}
    dropped = mined(tmp_path / "b", **options)
    assert all(len(row.negatives) == 2 for row in dropped.rows)
    kept = mined(tmp_path, incomplete="keep", **options)
    assert {len(row.negatives) for row in kept.rows} == {1, 2}
    lines = [json.loads(line) for line in (tmp_path / "out" / NEGATIVES_FILE).read_text().splitlines()]
    for row, line in zip(kept.rows, lines, strict=True):
        assert [line["negative_1"], line["negative_2"]] == [*row.negatives, None][:2]
    again = mine(MineConfig(rows=SourceConfig(str(tmp_path / "out" / NEGATIVES_FILE)), output_dir=str(tmp_path / "2")))
    texts = {text for row in kept.rows for text in (row.positive, *row.negatives)}
    assert again.passages == len(texts)
    fewer = sum(len(row.negatives) == 1 for row in kept.rows)
    assert kept.counts["of them with fewer negatives"] == fewer
    without = kept.counts["rows dropped without enough negatives"]
    assert dropped.counts["rows dropped without enough negatives"] == fewer + without > without > 0
    assert dropped.left_out["min_score"] > 0


def test_the_rows_own_passages_are_the_corpus_if_none_is_given(tmp_path: Path) -> None:
    rows = [
        {"text": "a fox", "positive": ["red fox", "fox"], "negative": "owl"},
        {"text": "an owl", "positive": "owls", "negative": "moon"},
    ]
    source = SourceConfig(str(write_jsonl(tmp_path / "rows.jsonl", rows)))
    mining = mine(
        MineConfig(rows=source, num_negatives=9, incomplete="keep", output_dir=str(tmp_path / "out"), range_max=20)
    )
    assert mining.passages == 5
    assert {name: set(texts) for name, texts in negatives_of(mining).items()} == {
        ("a fox", "red fox"): {"owl", "owls", "moon"},
        ("a fox", "fox"): {"owl", "owls", "moon"},
        ("an owl", "owls"): {"red fox", "fox", "owl", "moon"},
    }


@pytest.fixture(scope="module")
def cross_encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    def model_of(labels: str) -> Any:
        from transformers import BertConfig, BertForSequenceClassification

        from angle.modeling.tiny import tiny_tokenizer

        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(tiny_tokenizer()), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
            intermediate_size=32, num_labels=int(labels), initializer_range=0.3,
        )  # fmt: skip
        return BertForSequenceClassification(config)

    folder = folders_of(tmp_path_factory, model_of)
    folder("2")
    return folder("1")


def test_a_cross_encoder_judges(tmp_path: Path, cross_encoder: str) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    mining = mined(tmp_path, judge=JudgeConfig(cross_encoder), num_negatives=2, absolute_margin=0.01, range_max=30)
    model = AutoModelForSequenceClassification.from_pretrained(cross_encoder).eval()
    tokenizer = AutoTokenizer.from_pretrained(cross_encoder)
    row = mining.rows[0]
    for passage, score in zip([row.positive, *row.negatives], row.scores, strict=True):
        with torch.no_grad():
            logit = model(**tokenizer(row.query, passage, return_tensors="pt")).logits[0, 0]
        assert score == pytest.approx(float(logit.sigmoid()), abs=1e-5)
    for row in mining.rows:
        assert max(row.scores[1:]) <= row.scores[0] - 0.01 + 1e-6


def test_a_second_encoder_judges(tmp_path: Path, cross_encoder: str) -> None:
    judge = JudgeConfig(cross_encoder, kind="encoder")
    mining = mined(tmp_path, judge=judge, num_negatives=1)
    encoder = Encoder.load(ModelConfig(cross_encoder)).eval()
    row = mining.rows[0]
    query, *passages = F.normalize(encoder.encode([row.query, row.positive, *row.negatives]), dim=-1)
    assert list(row.scores) == pytest.approx([float(query @ passage) for passage in passages], abs=1e-5)


def test_a_classifier_is_no_judge(tmp_path: Path, cross_encoder: str) -> None:
    folder = str(next(path for path in Path(cross_encoder).parent.glob("2*")))
    with pytest.raises(ConfigError, match=r"^judge.name_or_path=.* has 2 outputs, but a judge scores a pair by one: "):
        mined(tmp_path, judge=JudgeConfig(folder))
    with pytest.raises(ConfigError, match=r"^judge.name_or_path=none could not be loaded as a cross-encoder: "):
        mined(tmp_path, judge=JudgeConfig("none"))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"text1": "a", "text2": "b", "label": 1}],
            "rows: FILE has pairs with labels (format A), of which mining cannot tell the positives: give rows with "
            "text and positive.",
        ),
        ([{"text": "a", "positive": "b"}, {"text": " ", "positive": "b"}], "rows: FILE line 2: text is empty."),
        ([{"text": "a", "positive": ["b", ""]}], "rows: FILE line 1: positive is empty."),
        ([{"text": "a", "positive": []}], "rows: FILE line 1: positive is not a text but []."),
        (
            [{"text": "a", "positive": "b"}],
            "No row has 3 negatives among 1 passages: give more of them by corpus.name_or_path=FILE, fewer "
            "num_negatives, incomplete=keep, or looser limits.",
        ),
    ],
)
def test_rows_that_cannot_be_mined_are_refused(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DataError) as error:
        mine(MineConfig(rows=SourceConfig(str(path)), output_dir=str(tmp_path / "out")))
    assert str(error.value).replace(str(path), "FILE") == message
    assert not (tmp_path / "out").exists()


def test_a_corpus_without_texts_is_refused(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "passages.jsonl", [{"passage": "x"}])
    with pytest.raises(DataError) as error:
        mined(tmp_path, corpus=SourceConfig(str(path)))
    assert str(error.value) == (
        f"corpus: {path} has the columns passage, but passages stand in a column text. Rename it: "
        f"'corpus.columns={{text: COLUMN}}'"
    )
    mining = mined(tmp_path, corpus=SourceConfig(str(path), columns={"text": "passage"}))
    assert mining.passages > 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"range_min": 5, "range_max": 6},
            "range_max=6 cannot work: beyond range_min=5 it leaves 1 passages for num_negatives=3; give range_max=35, "
            "or fewer negatives.",
        ),
        (
            {"max_score": 0.1, "min_score": 0.2},
            "max_score=0.1 cannot work: it is below min_score=0.2, so nothing would be left.",
        ),
        (
            {"rows": SourceConfig(5)},
            "rows.name_or_path=5 cannot work: give a name or path, or a list of them such as "
            "rows.name_or_path=[a.jsonl,b.jsonl].",
        ),
        (
            {"corpus": SourceConfig("a.jsonl", label_map={"x": 1.0})},
            "corpus.label_map has no effect on texts without labels: leave it out.",
        ),
    ],
)
def test_options_that_cannot_work_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        MineConfig(**settings)
    assert str(error.value) == message


@pytest.mark.slow
def test_the_command_writes_a_page_and_training_takes_the_rows(tmp_path: Path) -> None:
    prepare(tmp_path)
    words = ["model=tiny", "rows.name_or_path=rows.jsonl", "corpus.name_or_path=corpus.jsonl", "output_dir=mined"]
    done = start_here("-m", "angle.mine", *words, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Saved   mined/negatives.jsonl, and a page: mined/report/report.html" in done.stdout
    page = (tmp_path / "mined" / "report" / "report.html").read_text()
    for heading in ("How many", "How near", "Nearest", "Samples"):
        assert heading in page
    words = [*words[:-1], "layout=list", "output_dir=listed"]
    assert start_here("-m", "angle.mine", *words, folder=tmp_path).returncode == 0
    for folder in ("mined", "listed"):
        train = ["data=files", f"data.train.name_or_path={folder}/negatives.jsonl", "data.negatives=all"]
        done = start_here("train.py", *train, "train.max_steps=1", "train.batch_size=4", folder=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "format B" in done.stdout
    done = start_here("-m", "angle.mine", "model=tiny", folder=tmp_path)
    assert "rows.name_or_path is missing" in done.stderr


@pytest.mark.slow
def test_two_processes_mine_what_one_does(tmp_path: Path) -> None:
    prepare(tmp_path)
    words = ["-m", "angle.mine", "model=tiny", "rows.name_or_path=rows.jsonl", "corpus.name_or_path=corpus.jsonl"]
    for done in launch_ranks([*words, "output_dir=two"], tmp_path):
        assert done.returncode == 0, done.stderr[-3000:]
    one = mined(tmp_path, pooling=PoolingConfig())
    two = [json.loads(line) for line in (tmp_path / "two" / NEGATIVES_FILE).read_text().splitlines()]
    for row, written in zip(one.rows, two, strict=True):
        assert [written[f"negative_{number}"] for number in (1, 2, 3)] == row.negatives
        assert written["scores"] == pytest.approx(list(row.scores), abs=1e-5)


def test_a_judge_s_settings_without_one_are_refused() -> None:
    with pytest.raises(ConfigError) as error:
        JudgeConfig(kind="encoder")
    assert str(error.value) == (
        "judge.kind=encoder has no effect without a judge: add judge.name_or_path=MODEL, or leave it out."
    )
