"""Ranking metrics: by a second implementation of trec_eval's rules, and by sentence-transformers' evaluator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SpyTokenizer
from retrieval_sets import random_set, write_set
from torch import Tensor
from word_vectors import context, word_vectors

from angle.config import RetrievalConfig
from angle.data.retrieval import RetrievalSet, load_retrieval_set
from angle.evaluation.evaluator import RunContext
from angle.evaluation.evaluators import retrieval
from angle.evaluation.evaluators.retrieval import RetrievalEvaluator
from angle.evaluation.ranking_metrics import RANKING_METRICS
from angle.structures import Tokens


def load(folder: Path) -> RetrievalSet:
    return load_retrieval_set(RetrievalConfig(str(folder)), "valid_retrieval", SpyTokenizer())


def bag_of_words(tokens: Tokens, depths: Sequence[int] | None = None) -> Tensor:
    """Return embeddings in which texts that share words are near each other."""
    words = torch.stack([torch.randn(16, generator=torch.Generator().manual_seed(int(token))) for token in tokens.ids])
    return torch.stack([part.mean(dim=0) for part in words.split(tokens.lengths.tolist())])  # type: ignore[no-untyped-call]


def rankings_of(loaded: RetrievalSet) -> dict[str, list[str]]:
    """Return the passages of each query, nearest first, of equal ones the later id first."""
    vectors = torch.nn.functional.normalize(bag_of_words(loaded.tokens), dim=-1)
    rankings = {}
    for number, query in enumerate(loaded.query_ids):
        cosines = vectors[len(loaded) :] @ vectors[number]
        named = sorted(zip(cosines.tolist(), loaded.passage_ids, strict=True), reverse=True)
        rankings[query] = [passage for _, passage in named]
    return rankings


def naive_metrics(ranking: list[str], grades: dict[str, float]) -> dict[str, float]:
    gains = [grades.get(passage, 0.0) for passage in ranking[:100]]
    hits = [gain > 0 for gain in gains]
    ideal = sorted(grades.values(), reverse=True)[:10]
    dcg, best = (sum(gain / math.log2(2 + rank) for rank, gain in enumerate(each)) for each in (gains[:10], ideal))
    first = next((rank for rank, hit in enumerate(hits[:10]) if hit), None)
    precisions = [sum(hits[: rank + 1]) / (rank + 1) for rank, hit in enumerate(hits) if hit]
    return {
        "ndcg@10": dcg / best,
        "mrr@10": 0.0 if first is None else 1 / (first + 1),
        "map@100": sum(precisions) / len(grades),
        "recall@10": sum(hits[:10]) / len(grades),
        "recall@100": sum(hits) / len(grades),
        "precision@10": sum(hits[:10]) / 10,
        "accuracy@1": float(hits[0]),
    }


@pytest.mark.parametrize("graded", [False, True])
@pytest.mark.parametrize("at_once", [149, 10_000])
def test_metrics_match_a_naive_implementation(
    tmp_path: Path, graded: bool, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrieval, "PASSAGES_AT_ONCE", at_once)
    loaded = load(random_set(tmp_path, graded=graded))
    grades: dict[str, dict[str, float]] = {query: {} for query in loaded.query_ids}
    for query, passage, grade in zip(loaded.query, loaded.passage, loaded.grade, strict=True):
        grades[loaded.query_ids[query]][loaded.passage_ids[passage]] = float(grade)
    rankings = rankings_of(loaded)
    naive = [naive_metrics(rankings[query], grades[query]) for query in loaded.query_ids]
    values = dict(RetrievalEvaluator(loaded).run(bag_of_words))
    assert list(values) == list(RANKING_METRICS)
    for name, value in values.items():
        assert value == pytest.approx(np.mean([of_query[name] for of_query in naive]), abs=1e-9), name
    assert 0.05 < values["ndcg@10"] < 0.95


@pytest.mark.slow
def test_figures_equal_those_of_sentence_transformers(tmp_path: Path) -> None:
    """Its evaluator takes relevant passages as sets, so judgements are of one grade."""
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    loaded = load(random_set(tmp_path))
    vectors = dict(zip([*loaded.query_ids, *loaded.passage_ids], bag_of_words(loaded.tokens), strict=True))

    class Model:
        similarity_fn_name = "cosine"
        model_card_data = None

        def encode(self, names: list[str], **_: object) -> Tensor:
            return torch.stack([vectors[name] for name in names])

        encode_query = encode_document = encode

        @staticmethod
        def similarity(left: Tensor, right: Tensor) -> Tensor:
            return torch.nn.functional.normalize(left, dim=-1) @ torch.nn.functional.normalize(right, dim=-1).T

    relevant: dict[str, set[str]] = {query: set() for query in loaded.query_ids}
    for query, passage in zip(loaded.query, loaded.passage, strict=True):
        relevant[loaded.query_ids[query]].add(loaded.passage_ids[passage])
    theirs = InformationRetrievalEvaluator(
        {name: name for name in loaded.query_ids},
        {name: name for name in loaded.passage_ids},
        relevant,
        precision_recall_at_k=[10, 100],
        accuracy_at_k=[1],
        score_functions={"cosine": Model.similarity},
    ).compute_all_metrics(Model())["cosine"]
    for name, value in RetrievalEvaluator(loaded).run(bag_of_words):
        kind, k = name.split("@")
        assert value == pytest.approx(theirs[f"{kind}@k"][int(k)], abs=1e-9), name


def test_equally_near_passages_are_ranked_by_their_ids(tmp_path: Path) -> None:
    """As trec_eval does, and pytrec_eval and mteb with it: the later id first."""
    corpus = dict.fromkeys(("d1", "d2", "d3"), "same")
    write_set(tmp_path, corpus, {"q": "bird"}, [("q", "d3", 1)])
    values = dict(RetrievalEvaluator(load(tmp_path)).run(word_vectors({"same": (1.0, 0.0), "bird": (1.0, 0.0)})))
    assert values["mrr@10"] == 1


def test_a_query_is_a_row(tmp_path: Path) -> None:
    loaded = load(random_set(tmp_path))
    run: RunContext = context()
    rows = RetrievalEvaluator(loaded, run).row_values(bag_of_words)
    assert len(rows.values) == len(loaded)
    assert rows.metric() == dict(RetrievalEvaluator(loaded, run).run(bag_of_words))["ndcg@10"]
