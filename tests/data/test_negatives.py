"""Rows of format B with any number of negatives: how they are read, drawn, put into batches, and what they add."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import SpyTokenizer, write_jsonl

from angle.config import LossConfig, SourceConfig
from angle.data.collate import collate
from angle.data.corpus import Corpus
from angle.data.loading import load_corpus
from angle.data.plan import BatchSpec
from angle.data.streaming import StreamingTrainingData
from angle.data.training_data import InMemoryTrainingData
from angle.errors import DataError
from angle.evaluation.evaluator import RunContext
from angle.evaluation.evaluators.triplet import TripletAccuracy
from angle.objective.combined import CombinedLoss
from angle.structures import FORMATS

#: Three rows; the columns of negatives stand in no order, and hold 3, 1 and 2.
COLUMNS = [
    {"text": "t0", "negative_10": "n0.10", "positive": "p0", "negative": "n0", "negative_2": "n0.2"},
    {"text": "t1", "negative_10": None, "positive": "p1", "negative": " ", "negative_2": "n1.2"},
    {"text": "t2", "negative_10": "n2.10", "positive": "p2", "negative": "n2", "negative_2": []},
]
LISTS = [
    {"text": "t0", "positive": "p0", "negative": ["n0", "n0.2", "n0.10"]},
    {"text": "t1", "positive": "p1", "negative": "n1.2"},
    {"text": "t2", "positive": "p2", "negative": ["n2", "n2.10"]},
]


def load(tmp_path: Path, rows: Iterable[Mapping[str, Any]], negatives: str = "draw", **source: Any) -> Corpus:
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    return load_corpus(SourceConfig(str(path), **source), "train", SpyTokenizer(), negatives=negatives)


def complaint(tmp_path: Path, rows: Iterable[Mapping[str, Any]], **settings: Any) -> str:
    with pytest.raises(DataError) as caught:
        load(tmp_path, rows, **settings)
    return str(caught.value).replace(str(tmp_path / "rows.jsonl"), "FILE")


def negatives_of(corpus: Corpus, epoch: int = 0) -> list[list[str]]:
    """Return each row's negatives, by their names: a distinct text's number is when it first occurred."""
    cells = ([cell] if isinstance(cell, str) else cell for row in LISTS for cell in row.values())
    names = list(dict.fromkeys(itertools.chain.from_iterable(cells)))
    texts = corpus.draw_texts(np.arange(len(corpus)), 0, epoch)
    found: list[list[str]] = [[] for _ in range(len(corpus))]
    for row, text in zip(texts.negative_rows, texts.negatives, strict=True):
        found[row].append(names[text])
    return found


ALL = [["n0", "n0.2", "n0.10"], ["n1.2"], ["n2", "n2.10"]]


def test_numbered_columns_and_lists_of_all_are_the_same(tmp_path: Path) -> None:
    assert negatives_of(load(tmp_path, COLUMNS)) == ALL
    assert negatives_of(load(tmp_path, LISTS, "all")) == ALL
    assert negatives_of(load(tmp_path, COLUMNS), epoch=3) == ALL


def test_one_of_a_list_is_drawn_each_epoch_by_default(tmp_path: Path) -> None:
    corpus = load(tmp_path, LISTS)
    drawn = [negatives_of(corpus, epoch) for epoch in range(60)]
    assert {tuple(map(len, rows)) for rows in drawn} == {(1, 1, 1)}
    assert [{rows[n][0] for rows in drawn} for n in range(3)] == [set(names) for names in ALL]


@pytest.mark.parametrize("columns", [["negative_1"], ["negative_1", "negative_2"], ["negative"]])
def test_columns_without_a_first_one_or_a_gap(tmp_path: Path, columns: list[str]) -> None:
    row = {"text": "t", "positive": "p", **dict.fromkeys(columns, "n")}
    assert len(load(tmp_path, [row]).draw_texts(np.arange(1), 0, 0).negatives) == len(columns)


def test_numbered_columns_can_be_renamed_and_left_out(tmp_path: Path) -> None:
    rows = [{"text": "t", "positive": "p", "hard": "n", "negative_2": "m", "negative_3": "left out"}]
    corpus = load(tmp_path, rows, columns={"negative_1": "hard", "negative_3": None})
    assert len(corpus.draw_texts(np.arange(1), 0, 0).negatives) == 2
    assert len(corpus.tokens) == 4
    message = complaint(tmp_path, [{"text": "t", "positive": "p", "negative": "n", "hard_negative_4": "m"}])
    assert "'data.train.columns={hard_negative_4: null}'" in message
    assert "'data.train.columns={negative_4: hard_negative_4}'" in message


def test_what_cannot_be_meant_is_refused(tmp_path: Path) -> None:
    empty = {"text": "t", "positive": "p", "negative": None, "negative_1": ""}
    message = "data.train: FILE line 4: negative and negative_1, negative_2, negative_10 hold nothing (1 such row)."
    assert complaint(tmp_path, [*COLUMNS, empty]) == message
    mixed = {"text": "t", "positive": "p", "negative": ["n", "m"], "negative_1": "o"}
    assert complaint(tmp_path, [mixed]) == (
        "data.train: FILE line 1 has a list of negatives beside other columns of negatives, so one cannot be drawn "
        "from it: type data.negatives=all to use all of them, or give the lists as the only column."
    )
    assert len(load(tmp_path, [mixed], "all").draw_texts(np.arange(1), 0, 0).negatives) == 3
    assert "negative_1 is not a text but 7" in complaint(tmp_path, [mixed | {"negative_1": 7}], negatives="all")


def test_a_stream_has_the_same_batches(tmp_path: Path) -> None:
    spec = BatchSpec(2, shuffle=False)
    in_memory = InMemoryTrainingData(load(tmp_path, COLUMNS), spec)
    source = SourceConfig(str(tmp_path / "rows.jsonl"))
    streamed = StreamingTrainingData(source, "auto", SpyTokenizer(), spec, window=4)
    for (one,), (other,) in islice(zip(in_memory.steps(0), streamed.steps(0), strict=False), 2):
        assert torch.equal(one.structure.negatives.rows, other.structure.negatives.rows)
        assert torch.equal(one.structure.negatives.embedding_index, other.structure.negatives.embedding_index)


def naive_loss(corpus: Corpus, embeddings: torch.Tensor, weights: LossConfig) -> float:
    """Return the loss of all rows by loops over texts: every negative is a candidate of every row."""
    unit = F.normalize(embeddings, dim=-1)
    texts = corpus.draw_texts(np.arange(len(corpus)), 0, 0)
    rows = [(a, b, texts.negatives[texts.negative_rows == n].tolist()) for n, (a, b) in enumerate(texts.pairs.tolist())]
    all_negatives = [text for *_, negatives in rows for text in negatives]
    known = {(a, b) for a, b, _ in rows} | {(b, a) for a, b, _ in rows}

    def contrast(queries: list[int], partners: list[int]) -> float:
        losses = 0.0
        for number, query in enumerate(queries):
            logits = {
                place: 20 * float(unit[query] @ unit[candidate])
                for place, candidate in enumerate(partners + all_negatives)
                if place == number or (candidate != query and (query, candidate) not in known)
            }
            losses += math.log(sum(math.exp(value - logits[number]) for value in logits.values()))
        return losses / len(rows)

    def ranking(score: Any) -> float:
        positives = [score(unit[a], unit[b]) for a, b, _ in rows]
        negatives = [score(unit[a], unit[n]) for a, _, texts in rows for n in texts]
        return math.log1p(sum(math.exp(20 * (low - high)) for low in negatives for high in positives))

    def angle(x: torch.Tensor, y: torch.Tensor) -> float:
        z, w = torch.complex(*x.chunk(2)), torch.complex(*y.chunk(2))
        product = (z * w.conj()).sum()
        return abs(float(product.real + product.imag))

    assert weights.cosine_w is not None
    assert weights.ibn_w is not None
    assert weights.angle_w is not None
    assert weights.reverse_w is not None
    texts_of_rows, positives = [text for text, _, _ in rows], [positive for _, positive, _ in rows]
    in_batch = weights.ibn_w * contrast(texts_of_rows, positives)
    in_batch += weights.reverse_w * contrast(positives, texts_of_rows)
    cosine = ranking(lambda x, y: float(x @ y))
    return weights.cosine_w * cosine + in_batch + weights.angle_w * ranking(angle)


@pytest.mark.parametrize("seed", range(6))
def test_every_term_against_loops_over_texts(tmp_path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    names = [f"w{number}" for number in range(14)]  # texts repeat across rows and roles
    rows = []
    for _ in range(7):
        text, positive, *negatives = random.choice(names, 2 + random.integers(1, 5), replace=False).tolist()
        rows.append({"text": text, "positive": positive, "negative": negatives})
    corpus, weights = load(tmp_path, rows, "all"), LossConfig(1.5, 2.0, 0.7, reverse_w=3.0)
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(len(corpus.tokens), 6, generator=generator, dtype=torch.float64)
    batch = collate(corpus, np.arange(7), 0, BatchSpec(7))
    loss = CombinedLoss(weights, FORMATS["B"], 6)(embeddings[batch.text_ids], batch.structure)
    assert float(loss.total) == pytest.approx(naive_loss(corpus, embeddings, weights), rel=1e-10)


def test_triplet_accuracy_is_the_mean_over_rows_of_their_negatives(tmp_path: Path) -> None:
    corpus = load(tmp_path, LISTS, "all")
    cosine = {"t": 1.0, "p": 0.5, "n0": 0.4, "n0.2": 0.6, "n0.10": 0.5, "n1.2": 0.1, "n2": 0.7, "n2.10": 0.9}
    names = ["t", "p", "n0", "n0.2", "n0.10", "t", "p", "n1.2", "t", "p", "n2", "n2.10"]
    vectors = torch.tensor([[cosine[name], math.sqrt(1 - cosine[name] ** 2)] for name in names], dtype=torch.float64)
    context = RunContext(3, "mask", LossConfig(), 2, torch.device("cpu"))
    evaluator = TripletAccuracy(corpus, context)
    assert evaluator.row_values(lambda _, depths=None: vectors).values.tolist() == pytest.approx([1 / 3, 1, 0])
