"""Rows held out for validation share no text with those that are trained on, whatever their texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import SpyTokenizer, sample_rows, write_jsonl

from angle import TrainConfig, build_config
from angle.config import SourceConfig
from angle.data.corpus import Corpus
from angle.data.loading import load_corpus
from angle.data.plan import BatchSpec
from angle.data.split import hold_out, text_groups
from angle.errors import ConfigError, DataError
from angle.training.data import load_data


def corpus_of(path: Path, rows: list[dict[str, object]]) -> Corpus:
    return load_corpus(SourceConfig(str(write_jsonl(path / "rows.jsonl", rows))), "train", SpyTokenizer())


def texts_of(corpus: Corpus) -> list[set[tuple[int, ...]]]:
    """Return the texts of each row, as their tokens."""
    texts = [tuple(corpus.tokens.take(np.array([n])).ids.tolist()) for n in range(len(corpus.tokens))]
    ends = (corpus.cell_starts + corpus.cell_sizes).max(axis=1)
    return [
        {texts[text] for text in corpus.cell_texts[start:end]}
        for start, end in zip(corpus.cell_starts.min(axis=1), ends, strict=True)
    ]


def naive_groups(rows: list[set[tuple[int, ...]]]) -> list[int]:
    """Return the group of each row, by merging groups until nothing changes."""
    groups = list(range(len(rows)))
    changed = True
    while changed:
        changed = False
        for a, first in enumerate(rows):
            for b, second in enumerate(rows):
                if first & second and groups[a] != groups[b]:
                    groups[a] = groups[b] = min(groups[a], groups[b])
                    changed = True
    return groups


def random_rows(seed: int, count: int = 80) -> list[dict[str, object]]:
    """Return rows of few words, so that many share a text; some cells hold several."""
    rng = np.random.default_rng(seed)

    def cell() -> object:
        texts = [f"word{rng.integers(90)}" for _ in range(rng.integers(1, 3))]
        return texts if len(texts) > 1 else texts[0]

    return [{"text": f"own{n}" if n % 2 else cell(), "positive": cell()} for n in range(count)]


@pytest.mark.parametrize("seed", range(5))
def test_groups_are_those_of_a_naive_search(tmp_path: Path, seed: int) -> None:
    corpus = corpus_of(tmp_path, random_rows(seed))
    expected = naive_groups(texts_of(corpus))
    found = text_groups(corpus).tolist()
    assert len(set(found)) == len(set(expected)) > 1
    assert len(set(zip(found, expected, strict=True))) == len(set(expected))


@pytest.mark.parametrize("data_format", ["A", "B", "C"])
def test_every_row_is_on_one_side_and_no_text_on_both(tmp_path: Path, data_format: str) -> None:
    rows = sample_rows(data_format, "train", 300)
    corpus = corpus_of(tmp_path, rows)
    train, held_out = hold_out(corpus, 0.1)
    assert sorted([*train.numbers, *held_out.numbers]) == sorted(corpus.numbers)
    assert 15 <= len(held_out) <= 30
    assert not set.union(*texts_of(train)) & set.union(*texts_of(held_out))
    everything = dict(zip(corpus.numbers, texts_of(corpus), strict=True))
    for part in (train, held_out):
        assert [everything[number] for number in part.numbers] == texts_of(part)
        if corpus.labels is not None and part.labels is not None:
            labels = dict(zip(corpus.numbers, corpus.labels, strict=True))
            assert [labels[number] for number in part.numbers] == part.labels.tolist()
    assert len({corpus.fingerprint, train.fingerprint, held_out.fingerprint}) == 3


def test_the_rows_do_not_depend_on_a_seed(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", sample_rows("A", "train", 100))
    data = {"train": {"name_or_path": str(tmp_path / "rows.jsonl")}, "valid_split": 0.2}
    found = [
        load_data(build_config({"data": data}, TrainConfig).data, "auto", SpyTokenizer(), BatchSpec(4, seed=seed))
        for seed in (1, 2)
    ]
    assert found[0].fingerprints == found[1].fingerprints
    assert found[0].valid is found[0].valid_sts is not None


def test_rows_that_all_hang_together_cannot_be_split(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"text": "the same", "positive": f"another {n}"} for n in range(40)]
    with pytest.raises(DataError, match=r"^data.valid_split=0.1 asks for 4 of 40 rows, but .* up to 40 rows: "):
        hold_out(corpus_of(tmp_path, rows), 0.1)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"valid_split": 1.5},
            "data.valid_split=1.5 cannot work: it is a fraction of the training rows,",
        ),
        ({"valid_split": -0.1}, "data.valid_split=-0.1 cannot work: it is a fraction"),
        (
            {"valid_split": 0.1, "valid": {"name_or_path": "v.jsonl"}},
            "data.valid_split=0.1 cannot work beside data.valid, which",
        ),
        ({"valid_split": 0.1, "streaming": True}, "data.valid_split=0.1 cannot work with data.streaming=true"),
    ],
)
def test_a_split_that_cannot_work_is_refused(data: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_config({"data": data, "train": {"max_steps": 1}}, TrainConfig)
    assert str(caught.value).startswith(message)
