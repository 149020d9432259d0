"""Rows -> distinct texts, tokenised once and cached; an error in a row names its file and line."""

from __future__ import annotations

import ast
import inspect
import os
import re
import stat
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import SpyTokenizer, tokens_of, write_jsonl

from angle import structures
from angle.config import SourceConfig
from angle.data.corpus import Corpus
from angle.data.loading import load_corpus
from angle.data.purposes import TASKS
from angle.data.sources import open_tables
from angle.data.token_cache import cached_tokens
from angle.errors import DataError
from angle.modeling.tiny import tiny_tokenizer
from angle.modeling.tokenizer import TextTokenizer
from angle.structures import Tokens


def load(path: Path, tokenizer: SpyTokenizer, data_format: str = "auto", **settings: object) -> Corpus:
    """Return the corpus of one file."""
    return load_corpus(SourceConfig(str(path), **settings), "train", tokenizer, data_format)


def complaint(path: Path, **settings: object) -> str:
    """Return the error message for rows that cannot be used, without the file's name."""
    with pytest.raises(DataError) as caught:
        load(path, SpyTokenizer(), **settings)
    return str(caught.value).replace(str(path), "FILE")


def texts_of(corpus: Corpus) -> list[tuple[int, ...]]:
    """Return the tokens of each distinct text."""
    return [tuple(corpus.tokens.take(np.array([n])).ids.tolist()) for n in range(len(corpus.tokens))]


PAIRS = [
    {"text1": "a b", "text2": "c", "label": 3.8},
    {"text1": "c", "text2": "a b", "label": 0},
    {"text1": "d", "text2": "c", "label": "1.5"},
]
TRIPLES = [{"text": f"t{n}", "positive": f"p{n}", "negative": f"n{n}"} for n in range(4)]


def test_rows_point_to_distinct_texts(tmp_path, tokenizer):
    corpus = load(write_jsonl(tmp_path / "a.jsonl", PAIRS), tokenizer)
    assert (corpus.format.name, len(corpus), len(corpus.tokens)) == ("A", 3, 3)
    assert texts_of(corpus) == [tokens_of("a b"), tokens_of("c"), tokens_of("d")]
    assert corpus.draw_texts(np.arange(3), 0, 0).pairs.tolist() == [[0, 1], [1, 0], [2, 1]]
    assert corpus.describe(2) == f"{tmp_path / 'a.jsonl'} line 3"


def test_shapes_are_written_in_the_letters_of_the_legend(tmp_path, tokenizer):
    source = SourceConfig(str(write_jsonl(tmp_path / "a.jsonl", PAIRS)))

    def guide(texts, have_roles):
        return np.zeros((len(texts), 1 + have_roles, 5), np.float32)

    corpus = load_corpus(source, "train", tokenizer, hashes=True, guide=guide)
    for letter, meaning in {"B": "rows", "R": "roles"}.items():
        assert re.search(rf"\b{letter} {meaning}\b", structures.__doc__)
    sizes = {"B": 3, "R": 2, "K": 1, "D": 5, "C": len(corpus.cell_texts), "N": len(corpus.tokens)}
    (body,) = ast.parse(inspect.getsource(Corpus)).body
    fields, docs = body.body, body.body[1:]
    written = {
        field.target.id: re.findall(r"\w+", shape[1])
        for field, doc in zip(fields, docs, strict=False)
        if isinstance(field, ast.AnnAssign) and isinstance(doc, ast.Expr)
        if (shape := re.match(r"\((.+?)\)", doc.value.value))
    }
    assert written.keys() == {name for name, value in vars(corpus).items() if isinstance(value, np.ndarray)}
    for name, letters in written.items():
        assert getattr(corpus, name).shape == tuple(sizes.get(letter) for letter in letters), name


def test_labels_stay_floats(tmp_path, tokenizer):
    labels = load(write_jsonl(tmp_path / "a.jsonl", PAIRS), tokenizer).labels
    assert labels.dtype == np.float32
    assert labels == pytest.approx([3.8, 0, 1.5])
    assert load(write_jsonl(tmp_path / "b.jsonl", TRIPLES), tokenizer).labels is None


def test_distinct_texts_are_tokenised_once_and_cached(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setenv("ANGLE_CACHE", str(tmp_path / "cache"))
    path = write_jsonl(tmp_path / "a.jsonl", PAIRS)
    first = load(path, tokenizer)
    assert tokenizer.seen == ["a b", "c", "d"]
    reloaded = load(path, tokenizer)
    assert len(tokenizer.seen) == 3
    assert texts_of(reloaded) == texts_of(first)
    assert reloaded.fingerprint == first.fingerprint
    load(write_jsonl(path, [*PAIRS, {"text1": "new", "text2": "c", "label": 1}]), tokenizer)
    assert tokenizer.seen[3:] == ["a b", "c", "d", "new"]
    other = SpyTokenizer("Query: {text}")
    load(path, other)
    assert len(other.seen) == 4


def test_texts_are_not_confused_with_their_neighbours_in_the_cache(tmp_path, tokenizer):
    first = load(write_jsonl(tmp_path / "a.jsonl", [{"text": "a b", "positive": "c"}]), tokenizer)
    other = load(write_jsonl(tmp_path / "a.jsonl", [{"text": "a", "positive": "b c"}]), tokenizer)
    assert texts_of(first) != texts_of(other)
    assert first.fingerprint != other.fingerprint


def test_an_unwritable_cache_is_no_error(tmp_path, tokenizer, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ANGLE_CACHE", str(tmp_path / "file" / "cache"))
    assert len(load(write_jsonl(tmp_path / "a.jsonl", PAIRS), tokenizer)) == 3


def cut(path: Path) -> None:
    """Leave the first half of a file."""
    os.truncate(path, path.stat().st_size // 2)


def flip_a_byte(path: Path) -> None:
    """Change one bit of the array."""
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["ids.npy", "offsets.npy"])
@pytest.mark.parametrize(
    "damage",
    [
        Path.unlink,
        cut,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"PK\3\4" + path.read_bytes()),
        lambda path: path.write_bytes(path.read_bytes().replace(b"'<i", b"'<?", 1)),
        lambda path: np.save(path, np.load(path)[:-1]),
        lambda path: np.save(path, np.load(path).reshape(-1, 1)[:0]),
        lambda path: np.save(path, np.zeros_like(np.load(path))),
        flip_a_byte,
        lambda path: path.write_bytes(bytes(path.stat().st_size)),
        lambda path: path.write_bytes(path.read_bytes() + b"more"),
    ],
    ids=["missing", "cut", "empty", "zip", "header", "shorter", "nothing", "zeros", "byte", "power cut", "longer"],
)
def test_damaged_cached_tokens_are_replaced(tmp_path, tokenizer, monkeypatch, damage, name):
    monkeypatch.setenv("ANGLE_CACHE", str(tmp_path / "cache"))
    path = write_jsonl(tmp_path / "a.jsonl", PAIRS)
    intact = load(path, tokenizer)
    (folder,) = (tmp_path / "cache" / "tokens").iterdir()
    damage(folder / name)
    for _ in range(2):
        assert texts_of(load(path, tokenizer)) == texts_of(intact)
        assert len(tokenizer.seen) == 6  # made again by the first of the two, and found by the second
    assert sorted(file.name for file in folder.iterdir()) == ["ids.npy", "offsets.npy"]


def test_cached_tokens_of_another_key_are_not_taken(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setenv("ANGLE_CACHE", str(tmp_path / "cache"))
    first, second = (write_jsonl(tmp_path / f"{n}.jsonl", TRIPLES[n : n + 2]) for n in (0, 2))
    load(first, tokenizer)
    (other,) = (tmp_path / "cache" / "tokens").iterdir()
    intact = texts_of(load(second, tokenizer))
    (own,) = set((tmp_path / "cache" / "tokens").iterdir()) - {other}
    for name in ("ids.npy", "offsets.npy"):
        (own / name).write_bytes((other / name).read_bytes())
    assert texts_of(load(second, tokenizer)) == intact


def test_texts_that_hold_what_separates_them_are_not_confused(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setenv("ANGLE_CACHE", str(tmp_path / "cache"))
    for texts in (["a\1b", "c"], ["a", "b\1c"]):
        corpus = load(write_jsonl(tmp_path / "a.jsonl", [{"text": texts[0], "positive": texts[1]}]), tokenizer)
        assert texts_of(corpus) == [tokens_of(text) for text in texts]


def test_cached_tokens_have_the_permissions_that_the_umask_allows(tmp_path):
    tokens = Tokens(np.arange(3, dtype=np.int32), np.array([0, 3]))
    before = os.umask(0o027)
    try:
        cached_tokens(tmp_path / "cache" / "key", lambda: tokens, 1)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "cache").rglob("*")}
    assert modes == {"key": 0o750, "ids.npy": 0o640, "offsets.npy": 0o640}


@pytest.mark.parametrize(
    "change",
    [lambda rows: rows[:2], lambda rows: rows[::-1], lambda rows: [{**row, "label": 1} for row in rows]],
    ids=["fewer", "order", "labels"],
)
def test_the_fingerprint_depends_on_all_content(tmp_path, tokenizer, change):
    original = load(write_jsonl(tmp_path / "a.jsonl", PAIRS), tokenizer)
    assert load(write_jsonl(tmp_path / "b.jsonl", PAIRS), tokenizer).fingerprint == original.fingerprint
    assert load(write_jsonl(tmp_path / "c.jsonl", change(PAIRS)), tokenizer).fingerprint != original.fingerprint


def test_cached_tokens_must_be_known_to_the_model_too(tmp_path):
    """Another model may have the same tokenizer and a smaller table."""
    path = write_jsonl(tmp_path / "a.jsonl", PAIRS)
    tokens = load(path, TextTokenizer(tiny_tokenizer(), 64)).tokens
    last = int(tokens.ids.max())
    load(path, TextTokenizer(tiny_tokenizer(), 64, num_embeddings=lambda: last + 1))
    with pytest.raises(
        DataError, match=rf"as number {last}, counted from 0, but the model has embeddings for {last} tokens"
    ):
        load(path, TextTokenizer(tiny_tokenizer(), 64, num_embeddings=lambda: last))


def test_template_columns_make_texts_distinct(tmp_path):
    rows = [{"text": "a", "positive": "b", "lang": lang} for lang in ("de", "en")]
    corpus = load(write_jsonl(tmp_path / "a.jsonl", rows), SpyTokenizer("x", ("lang",)))
    assert texts_of(corpus) == [tokens_of("a de"), tokens_of("b de"), tokens_of("a en"), tokens_of("b en")]
    write_jsonl(tmp_path / "b.jsonl", [{**rows[0], "lang": None}])
    with pytest.raises(DataError, match=r"line 1: lang is null, but the template uses it \(1 such row\)"):
        load(tmp_path / "b.jsonl", SpyTokenizer("x", ("lang",)))
    write_jsonl(tmp_path / "c.jsonl", TRIPLES)
    with pytest.raises(DataError, match=r"uses \{lang\}, but .* has the columns text, positive, negative\.$"):
        load(tmp_path / "c.jsonl", SpyTokenizer("x", ("lang",)))


def test_a_text_in_two_templates_is_one_text_with_two_embeddings(tmp_path):
    rows = [{"text": "fox", "positive": "owl"}, {"text": "owl", "positive": ["fox", "a fox"]}]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    prompts = {"query": "the: {text}", "document": "{text} word"}
    tokenizer = TextTokenizer(tiny_tokenizer(), 64, prompts=prompts)
    corpus = load(path, tokenizer)
    expected = [("text", "fox"), ("positive", "owl"), ("text", "owl"), ("positive", "fox"), ("positive", "a fox")]
    spelled = [tokenizer.named(role)([text]) for role, text in expected]
    assert texts_of(corpus) == [tuple(each.ids.tolist()) for each in spelled]
    assert corpus.equal_ids.tolist() == [0, 1, 1, 0, 4]
    positives = corpus.known_positives(np.arange(2), np.ones(5, bool))[:, 1:]
    assert corpus.equal_ids[positives].tolist() == [[1, 0], [1, 4]]
    # The cache knows the templates, and what stands in one template only counts as before.
    assert load(path, tokenizer).tokens.ids.tolist() == corpus.tokens.ids.tolist()
    other = load(path, TextTokenizer(tiny_tokenizer(), 64, prompts=prompts | {"document": "{text} red"}))
    assert other.tokens.ids.tolist() != corpus.tokens.ids.tolist()
    assert other.fingerprint != corpus.fingerprint
    same = [load(path, TextTokenizer(tiny_tokenizer(), 64, "x {text}", prompts=each)) for each in ({}, {"text2": "y"})]
    assert len(same[0].tokens) == 3
    assert same[0].fingerprint == same[1].fingerprint == load(path, SpyTokenizer()).fingerprint


def test_templates_of_other_columns_need_no_columns(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "fox", "positive": "owl", "lang": "red"}])
    tokenizer = TextTokenizer(tiny_tokenizer(), 64, prompts={"query": "{lang} {text}", "text1": "{missing} {text}"})
    corpus = load(path, tokenizer)
    assert texts_of(corpus)[0] == tuple(
        tokenizer.named("text1").named("query")(["fox"], [{"lang": "red"}]).ids.tolist()
    )
    assert texts_of(corpus)[1] == tuple(TextTokenizer(tiny_tokenizer(), 64)(["owl"]).ids.tolist())


def test_sources_of_a_list_are_concatenated(tmp_path, tokenizer):
    paths = [str(write_jsonl(tmp_path / f"{n}.jsonl", TRIPLES[n : n + 2])) for n in (0, 2)]
    corpus = load_corpus(SourceConfig(paths), "train", tokenizer)
    assert [corpus.describe(n) for n in range(4)] == [f"{path} line {line}" for path in paths for line in (1, 2)]
    assert corpus.fingerprint == load(write_jsonl(tmp_path / "all.jsonl", TRIPLES), tokenizer).fingerprint
    write_jsonl(tmp_path / "a.jsonl", PAIRS)
    with pytest.raises(DataError, match=r"0\.jsonl is format B, but .*a\.jsonl has the columns text1, text2, label"):
        load_corpus(SourceConfig([*paths, str(tmp_path / "a.jsonl")]), "train", tokenizer)


@pytest.mark.parametrize("first", [0, 1])
def test_sources_of_different_formats_are_refused_in_any_order(tmp_path, tokenizer, first):
    rows = [TRIPLES, [{"text": row["text"], "positive": row["positive"]} for row in TRIPLES]]
    paths = [str(write_jsonl(tmp_path / f"{n}.jsonl", rows[n])) for n in (first, 1 - first)]
    with pytest.raises(DataError, match=r"all sources of a list must have the same format\."):
        load_corpus(SourceConfig(paths), "train", tokenizer)
    assert len(load_corpus(SourceConfig(paths), "train", tokenizer, "C")) == 2 * len(TRIPLES)


def test_label_map(tmp_path, tokenizer):
    labels = ["entailment", "neutral", "contradiction", "neutral", 2]
    path = write_jsonl(
        tmp_path / "a.jsonl", [{"text1": f"{n}", "text2": "x", "label": v} for n, v in enumerate(labels)]
    )
    mapping = {"entailment": 1.0, "contradiction": 0.0, "neutral": None, "2": 0.5}
    corpus = load(path, tokenizer, label_map=mapping)
    assert corpus.labels.tolist() == [1.0, 0.0, 0.5]
    assert corpus.dropped == 2
    assert tokenizer.seen == ["0", "x", "2", "4"]
    assert corpus.describe(1) == f"{path} line 3"
    assert complaint(path, label_map={"entailment": 1.0, "neutral": None}) == (
        "data.train: FILE line 3: label is 'contradiction', which label_map does not name "
        "(it names entailment, neutral) (2 such rows)."
    )
    write_jsonl(path, [{"text1": "a", "text2": "x", "label": "neutral"}] * 2)
    assert complaint(path, label_map=mapping) == "data.train has no usable rows: label_map dropped all 2."


@pytest.mark.parametrize("label", [1, 1.0])
def test_label_map_names_a_number_however_it_is_stored(tmp_path, tokenizer, label):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text1": "a", "text2": "b", "label": label}])
    assert load(path, tokenizer, label_map={"1": 3.0}).labels.tolist() == [3.0]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({2: {"text2": None}, 4: {"text2": None}}, "line 3: text2 is null (2 such rows)."),
        ({1: {"text1": ""}}, "line 2: text1 is empty (1 such row)."),
        (
            {1: {"text1": "\u200b\x01 \ufeff"}},
            "line 2: text1 has no visible character ('\\u200b\\x01 \\ufeff') (1 such row).",
        ),
        ({1: {"text1": " \t\u3000"}}, "line 2: text1 is empty (1 such row)."),
        ({0: {"text1": 7}}, "line 1: text1 is not a text but 7 (1 such row)."),
        ({0: {"text1": []}}, "line 1: text1 is an empty list (1 such row)."),
        ({0: {"text1": ["a", None]}}, "line 1: text1 is null (1 such row)."),
        (
            {3: {"label": "high"}, 4: {"label": "low"}},
            "line 4: label is 'high', which is not a number (2 such rows); give numbers, or map names: "
            "'data.train.label_map={high: NUMBER, low: NUMBER}'.",
        ),
        ({3: {"label": float("nan")}}, "line 4: label is nan, which is not a finite number (1 such row)."),
        ({3: {"label": float("inf")}}, "line 4: label is inf, which is not a finite number (1 such row)."),
        ({3: {"label": None}}, "line 4: label is null (1 such row)."),
        ({n: {"text1": n + 7} for n in range(3)}, "line 1: text1 is not a text but 7 (3 such rows)."),
        ({0: {"text1": [1]}, 2: {"text1": {"a": "b"}}}, "line 1: text1 is not a text but 1 (2 such rows)."),
        (
            {0: {"label": "x"}, 1: {"label": None}, 2: {"label": float("nan")}, 3: {"label": True}, 4: {"label": ""}},
            "line 1: label is 'x', which is not a number (2 such rows, and 3 other kinds of problem); give numbers, or "
            "map names: 'data.train.label_map={x: NUMBER, True: NUMBER}'.",
        ),
        (
            {1: {"text1": None}, 2: {"label": None}, 3: {"text2": ""}},
            "line 2: text1 is null (1 such row, and 2 other kinds of problem).",
        ),
    ],
    ids=str,
)
def test_invalid_rows(tmp_path, changes, text):
    rows = [{"text1": f"a{n}", "text2": f"b{n}", "label": n} | changes.get(n, {}) for n in range(6)]
    assert complaint(write_jsonl(tmp_path / "a.jsonl", rows)) == f"data.train: FILE {text}"


@pytest.mark.parametrize(
    ("label", "settings", "text"),
    [
        (
            "high",
            {},
            "tasks: FILE line 1: label is 'high', which is not a number (1 such row); give numbers, or map names: "
            "'label_map={high: NUMBER}'.",
        ),
        ("x", {"label_map": {"x": None}}, "tasks: FILE has no usable rows: label_map dropped all 1."),
    ],
)
def test_messages_on_a_task_name_the_settings_of_evaluate(tmp_path, tokenizer, label, settings, text):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text1": "a", "text2": "b", "label": label}])
    with pytest.raises(DataError) as caught:
        load_corpus(SourceConfig(str(path), **settings), TASKS, tokenizer, "A")
    assert str(caught.value).replace(str(path), "FILE") == text


@pytest.mark.parametrize("label", [True, "", " "])
def test_messages_on_unusable_labels_suggest_nothing_that_cannot_work(tmp_path, label):
    text = complaint(write_jsonl(tmp_path / "a.jsonl", [{"text1": "a", "text2": "b", "label": label}]))
    assert text.startswith("data.train: FILE line 1: label is ")
    assert "label_map={:" not in text
    assert "label_map={ :" not in text
    assert "True, which is not a finite number" not in text


def lists(tmp_path: Path, tokenizer: SpyTokenizer, rows: int = 12) -> Corpus:
    """Return a corpus whose positives are lists of one to four texts."""
    cells = ({"text": f"t{n}", "positive": [f"p{n}.{k}" for k in range(n % 4 + 1)]} for n in range(rows))
    return load(write_jsonl(tmp_path / "lists.jsonl", cells), tokenizer)


def test_a_text_of_a_list_is_drawn_by_seed_epoch_and_row(tmp_path, tokenizer):
    corpus = lists(tmp_path, tokenizer)
    rows = np.arange(12)
    drawn = corpus.draw_texts(rows, 1, 0).pairs
    choices = [{tokens_of(f"p{n}.{k}") for k in range(n % 4 + 1)} for n in range(12)]
    texts = texts_of(corpus)
    assert all(texts[positive] in choices[n] for n, (_, positive) in enumerate(drawn.tolist()))
    assert [texts[text] for text, _ in drawn.tolist()] == [tokens_of(f"t{n}") for n in range(12)]
    np.testing.assert_array_equal(corpus.draw_texts(rows, 1, 0).pairs, drawn)
    for order in (rows[::-1], rows[[5, 2]], rows[7:8]):
        np.testing.assert_array_equal(corpus.draw_texts(order, 1, 0).pairs, drawn[order])
    assert (corpus.draw_texts(rows, 1, 1).pairs != drawn).any()
    assert (corpus.draw_texts(rows, 2, 0).pairs != drawn).any()


def test_known_positives(tmp_path, tokenizer):
    corpus = lists(tmp_path, tokenizer)  # row n has texts "tn" and "pn.0" to "pn.(n % 4)"
    numbers = {text: number for number, text in enumerate(texts_of(corpus))}
    in_batch = [numbers[tokens_of(text)] for text in ("p5.0", "t5", "p5.1", "t4", "p4.0", "t6", "p2.1", "p3.3", "t3")]
    mask = np.isin(np.arange(len(corpus.tokens)), in_batch)
    pairs = corpus.known_positives(np.array([6, 5, 4, 3]), mask)
    expected = [(1, "t5", "p5.0"), (1, "t5", "p5.1"), (3, "t3", "p3.3")]  # row 4 has nothing to draw from
    assert sorted(map(tuple, pairs.tolist())) == sorted(
        (position, numbers[tokens_of(text)], numbers[tokens_of(positive)]) for position, text, positive in expected
    )
    assert corpus.known_positives(np.array([4, 0]), mask).shape == (0, 3)


def test_every_choice_of_a_list_is_drawn_about_equally_often(tmp_path, tokenizer):
    corpus = lists(tmp_path, tokenizer, rows=4)
    counts = Counter(int(corpus.draw_texts(np.array([3]), 0, epoch).pairs[0, 1]) for epoch in range(400))
    assert len(counts) == 4
    assert min(counts.values()) > 60


@pytest.mark.parametrize("label_map", [{}, {"1e39": 1e39, "1e999": float("nan"), "1": 1.0, "0": 0.0}])
@pytest.mark.parametrize("label", ["1e39", "1e999"])
def test_labels_must_be_finite_as_they_are_kept(tmp_path, tokenizer, label, label_map):
    rows = [{"text1": "a", "text2": "b", "label": value} for value in ("1", "0", label)]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    with pytest.raises(DataError, match=f"line 3: label is {label},.* not a finite number"):
        load(path, tokenizer, label_map=label_map)


@pytest.mark.parametrize("streaming", [False, True])
def test_columns_are_those_of_all_rows(tmp_path, streaming):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "a", "positive": "b"}, {**TRIPLES[0], "id": 1}])
    (table,) = open_tables(SourceConfig(str(path)), "train", streaming=streaming)
    assert table.columns == ("text", "positive", "negative", "id")
