"""Queries, passages and judgements: read from every layout, and refused in a sentence that names the row."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import SpyTokenizer, tokens_of
from retrieval_sets import write_set

from angle.config import LimitsConfig, RetrievalConfig
from angle.data.purposes import TASKS
from angle.data.retrieval import RetrievalSet, load_retrieval_set
from angle.data.retrieval_files import NANO_BEIR, is_retrieval_folder, nano_beir_set, open_part
from angle.errors import DataError
from angle.modeling.tiny import tiny_tokenizer
from angle.modeling.tokenizer import TextTokenizer

CORPUS = {"d1": "owl", "d10": ("the", "fox"), "d2": "moon"}
QUERIES = {"q1": "bird", "q2": "animal", "q3": "nothing"}
QRELS = [("q2", "d10", 1), ("q1", "d1", 2), ("q1", "d10", 1), ("q1", "d2", 0), ("q3", "d2", 0)]


def load(folder: Path, purpose: str = "valid_retrieval", limits: LimitsConfig | None = None) -> RetrievalSet:
    return load_retrieval_set(RetrievalConfig(str(folder)), purpose, SpyTokenizer(), limits)


def complaint(folder: Path, limits: LimitsConfig | None = None) -> str:
    with pytest.raises(DataError) as caught:
        load(folder, limits=limits)
    return str(caught.value).replace(str(folder), "SET")


def judged(loaded: RetrievalSet) -> set[tuple[str, str, float]]:
    rows = zip(loaded.query, loaded.passage, loaded.grade, strict=True)
    return {(loaded.query_ids[query], loaded.passage_ids[passage], float(grade)) for query, passage, grade in rows}


def texts_of(loaded: RetrievalSet) -> dict[str, tuple[int, ...]]:
    names = [*loaded.query_ids, *loaded.passage_ids]
    return {name: tuple(loaded.tokens.take(np.array([n])).ids.tolist()) for n, name in enumerate(names)}


def check(loaded: RetrievalSet) -> None:
    assert judged(loaded) == {("q2", "d10", 1), ("q1", "d1", 2), ("q1", "d10", 1)}
    assert loaded.passage_ids == ("d2", "d10", "d1")
    assert loaded.query_ids == ("q1", "q2")
    assert texts_of(loaded) == {
        "q1": tokens_of("bird"), "q2": tokens_of("animal"),
        "d1": tokens_of("owl"), "d10": tokens_of("the fox"), "d2": tokens_of("moon"),
    }  # fmt: skip
    assert loaded.draw_texts(np.array([1, 0])).pairs.tolist() == [[1, 3], [0, 4]]
    assert len(loaded) == 2
    assert loaded.left_out == {"queries without a relevant passage": 1}


def test_a_folder_in_the_layout_of_beir(tmp_path: Path) -> None:
    loaded = load(write_set(tmp_path, CORPUS, QUERIES, QRELS))
    check(loaded)
    assert load(tmp_path).fingerprint == loaded.fingerprint
    write_set(tmp_path, CORPUS, QUERIES, [*QRELS[:1], ("q1", "d1", 3), *QRELS[2:]])
    assert load(tmp_path).fingerprint != loaded.fingerprint


def test_compressed_files_and_numbers_as_ids(tmp_path: Path) -> None:
    write_set(tmp_path, {"1": "owl"}, {"2": "bird"}, [("2", "1", 1)])
    path = tmp_path / "corpus.jsonl"
    with gzip.open(tmp_path / "corpus.jsonl.gz", "wt") as file:
        file.write(json.dumps({"_id": 1, "text": "owl"}) + "\n")
    path.unlink()
    assert judged(load(tmp_path)) == {("2", "1", 1.0)}


def test_the_clone_of_a_repository_with_parquet_files(tmp_path: Path) -> None:
    from datasets import Dataset

    parts = {
        "corpus": [
            {"id": name, "text": text if isinstance(text, str) else " ".join(text)} for name, text in CORPUS.items()
        ],
        "queries": [{"id": name, "text": text} for name, text in QUERIES.items()],
        "qrels": [{"query-id": query, "corpus-id": passage, "score": grade} for query, passage, grade in QRELS],
    }
    for name, rows in parts.items():
        (tmp_path / name).mkdir()
        split = "dev" if name == "qrels" else "train"
        Dataset.from_list(rows).to_parquet(tmp_path / name / f"{split}-00000-of-00001.parquet")
    check(load(tmp_path))


@pytest.mark.parametrize(
    ("source", "asked"),
    [
        (
            RetrievalConfig("NanoMSMARCO"),
            {part: ("zeta-alpha-ai/NanoMSMARCO", part, "train") for part in ("corpus", "queries", "qrels")},
        ),
        (
            RetrievalConfig("BeIR/scifact"),
            {
                "corpus": ("BeIR/scifact", "corpus", "corpus"),
                "queries": ("BeIR/scifact", "queries", "queries"),
                "qrels": ("BeIR/scifact-qrels", None, "dev"),
            },
        ),
        (
            RetrievalConfig("team/own", qrels="team/judged", split="test", revision="v1"),
            {
                "corpus": ("team/own", "corpus", "corpus"),
                "queries": ("team/own", "queries", "queries"),
                "qrels": ("team/judged", None, "test"),
            },
        ),
    ],
)
def test_where_a_set_is_on_the_hub(
    source: RetrievalConfig, asked: dict[str, tuple[str, str | None, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    calls = []

    def load_dataset(name: str, subset: str | None, *, split: str, **options: object) -> datasets.Dataset:
        calls.append((name, subset, split, options["revision"]))
        return datasets.Dataset.from_list([{"_id": "x", "text": "y", "query-id": "q", "corpus-id": "x"}])

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    for part, expected in asked.items():
        (table,) = open_part(source, part, "valid_retrieval", LimitsConfig())  # type: ignore[arg-type]
        assert calls.pop() == (*expected, None if part == "qrels" and source.qrels else source.revision)
        assert list(table.rows)


def test_the_sets_of_nano_beir_have_their_published_names() -> None:
    assert len(set(NANO_BEIR)) == 13
    assert nano_beir_set("nanomsmarco") == RetrievalConfig("zeta-alpha-ai/NanoMSMARCO", split="train")
    assert nano_beir_set("nanomarco") is None


def test_passages_without_a_visible_character_are_counted(tmp_path: Path) -> None:
    write_set(tmp_path, CORPUS | {"d4": "", "d5": "\u200b"}, QUERIES, QRELS)
    loaded = load(tmp_path)
    assert loaded.left_out["passages without a visible character"] == 2
    assert "d4" not in loaded.passage_ids


ROW = "SET/qrels/dev.tsv row"
NOT_OF_THIS_CORPUS = "give judgements of this corpus, or leave the row out."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"qrels": [*QRELS, ("q9", "d1", 1)]},
            f"{ROW} 6: query-id is q9, which is none of the ids in queries: {NOT_OF_THIS_CORPUS}",
        ),
        (
            {"qrels": [*QRELS, ("q1", "d9", 1)]},
            f"{ROW} 6: corpus-id is d9, which is none of the ids in corpus: {NOT_OF_THIS_CORPUS}",
        ),
        (
            {"qrels": [("q1", "d1", 0)]},
            "SET has no judgement above 0, so nothing could be found: give a passage that answers a query the score 1, "
            "or more.",
        ),
        ({"qrels": [*QRELS, ("q1", "d1", 1)]}, f"{ROW} 6: judges d1 for query q1 as 1, but an earlier row as 2."),
        ({"qrels": [("q1", "d1", "good")]}, f"{ROW} 1: score is 'good', which is not a number."),
        ({"qrels": []}, "SET/qrels/dev.tsv is empty: it has no row."),
        ({"corpus": {}}, "SET/corpus.jsonl is empty."),
        ({"queries": {}}, "SET/queries.jsonl is empty."),
        ({"corpus": CORPUS | {"d1": ""}}, "SET/corpus.jsonl line 1: text is empty."),
        (
            {"corpus": CORPUS | {"d1": 5 * "x"}, "queries": dict.fromkeys(QUERIES, "bird")},
            "SET/corpus.jsonl line 1: text has 5 characters: split the text, or raise data.limits.text_length=4.",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    limits = LimitsConfig(text_length=4) if "characters" in message else None
    parts = {"corpus": CORPUS, "queries": QUERIES, "qrels": QRELS} | change
    found = complaint(write_set(tmp_path, **parts), limits)  # type: ignore[arg-type]
    assert found == f"data.valid_retrieval: {message}"


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("corpus.jsonl", {"_id": "d1", "text": "again"}, "line 4: _id is d1, which is also that of line 1."),
        ("queries.jsonl", {"_id": "q1", "text": "again"}, "line 4: _id is q1, which is also that of line 1."),
        ("corpus.jsonl", {"_id": None, "text": "x"}, "line 4: _id is None, which is no id."),
        ("corpus.jsonl", {"_id": "d7", "text": 3}, "line 4: text is not a text but 3."),
        ("corpus.jsonl", {"_id": "d7", "title": 3, "text": "x"}, "line 4: title is not a text but 3."),
    ],
)
def test_a_row_with_a_problem_is_named(tmp_path: Path, file: str, line: dict[str, object], message: str) -> None:
    write_set(tmp_path, CORPUS, QUERIES, QRELS)
    with (tmp_path / file).open("a") as opened:
        opened.write(json.dumps(line) + "\n")
    assert complaint(tmp_path) == f"data.valid_retrieval: SET/{file} {message}"


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    start = "data.valid_retrieval: SET"
    layout = "corpus.jsonl, queries.jsonl and qrels/dev.tsv"
    assert complaint(tmp_path) == f"{start} has no judgements: a retrieval set has qrels/dev.tsv."
    write_set(tmp_path, CORPUS, QUERIES, QRELS, split="test")
    assert not is_retrieval_folder(tmp_path / "qrels")
    assert is_retrieval_folder(tmp_path)
    assert complaint(tmp_path) == (
        f"{start} has no judgements qrels/dev; it has test: type data.valid_retrieval.split=test"
    )
    (tmp_path / "corpus.jsonl").unlink()
    with pytest.raises(DataError, match=r"^tasks: .* has no corpus.jsonl: a retrieval set has corpus.jsonl, "):
        load(tmp_path, TASKS)
    nowhere = f"{start}/none does not exist; the folder you are in is {Path.cwd()}: give a folder with {layout}."
    assert complaint(tmp_path / "none") == nowhere.replace("SET/none", "SET")
    (tmp_path / "qrels" / "dev.tsv").write_text("q1\td1\t1\n" * 2)
    assert complaint(tmp_path).endswith("has the columns q1, d1, 1, but qrels need query-id, corpus-id.")


def text_tokenizer(**prompts: str) -> TextTokenizer:
    return TextTokenizer(tiny_tokenizer(), 32, prompts=prompts)


def test_queries_and_passages_have_templates_of_their_own(tmp_path: Path) -> None:
    write_set(tmp_path, {"d": "owl"}, {"q": "owl"}, [("q", "d", 1)])
    source = RetrievalConfig(str(tmp_path))
    tokenizer = text_tokenizer(query="fox: ", document="moon: ")
    loaded = load_retrieval_set(source, "valid_retrieval", tokenizer)
    ids = loaded.tokens.ids.tolist()
    assert ids == [*text_tokenizer()(["fox: owl"]).ids, *text_tokenizer()(["moon: owl"]).ids]
    plain = load_retrieval_set(source, "valid_retrieval", text_tokenizer())
    assert plain.tokens.ids.tolist() == [*text_tokenizer()(["owl"]).ids] * 2


def test_a_template_with_columns_is_refused(tmp_path: Path) -> None:
    write_set(tmp_path, CORPUS, QUERIES, QRELS)
    with pytest.raises(DataError) as caught:
        load_retrieval_set(RetrievalConfig(str(tmp_path)), TASKS, text_tokenizer(document="{title}: {text}"))
    assert str(caught.value) == (
        "tasks: the model's template of a document uses {title}, but queries and passages have nothing but their text: "
        "give one with {text} alone, 'model.prompts={document: \"{text}\"}'."
    )
