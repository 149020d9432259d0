"""STS: scored pairs, what is computed from them, and the word-overlap baseline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_jsonl
from sts_pairs import PAIRS, write_pairs

from angle.config import ModelConfig, PoolingConfig, SourceConfig
from angle.data.corpus import Corpus
from angle.errors import DataError
from angle.evaluation.evaluators.sts import PairScores, load_sts, score_pairs, word_overlap
from angle.evaluation.metrics import best_accuracy
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


def test_pairs_are_scored_in_their_order(encoder: Encoder, corpus: Corpus) -> None:
    done: list[int] = []
    pairs = score_pairs(encoder, corpus, 2, done.append)
    left, right = (encoder.encode([pair[side] for pair in PAIRS]).double() for side in (0, 1))
    np.testing.assert_allclose(pairs.scores["cosine"], torch.cosine_similarity(left, right), atol=1e-6)
    np.testing.assert_allclose(pairs.scores["euclidean"], -(left - right).norm(dim=-1), atol=1e-5)
    assert pairs.scores["cosine"][0] == pytest.approx(1.0)
    assert pairs.labels.tolist() == [5.0, 3.0, 0.0, 1.0, 4.0]
    assert sum(done) == 5  # of ten texts, five are different


def test_metrics_of_a_task() -> None:
    cosine = np.array([0.9, 0.1, 0.7, 0.2])
    other = np.array([1.0, 2.0, 3.0, 5.0])
    pairs = PairScores(np.array([5.0, 0.0, 3.0, 1.0]), {"cosine": cosine, "dot": other})
    metrics = pairs.metrics(positive_above=2.0)
    assert pairs.spearman == metrics["spearman_cosine"] == pytest.approx(1.0)
    assert metrics["spearman_dot"] == pytest.approx(-0.4)
    assert metrics["pearson_cosine"] == pytest.approx(np.corrcoef(cosine, pairs.labels)[0, 1])
    assert metrics["accuracy"] == 1.0
    assert metrics["accuracy_threshold"] == pytest.approx(0.45)
    assert metrics["pairs"] == 4
    assert pairs.metrics(positive_above=4.0)["accuracy_threshold"] == pytest.approx(0.8)


def test_positive_above_is_compared_in_float32(pairs_file: Path, encoder: Encoder, tmp_path: Path) -> None:
    """Labels are kept in float32, where 0.8 is a little more than in float64."""
    path = write_jsonl(
        tmp_path / "tenths.jsonl",
        [
            {"text1": left, "text2": right, "label": label / 10}
            for (left, right, _), label in zip(PAIRS, [8, 8, 1, 2, 9], strict=True)
        ],
    )
    pairs = score_pairs(encoder, load_sts(SourceConfig(str(path)), "test", encoder.tokenizer))
    for threshold, positives in ((0.8, 1), (0.1, 4), (0.2, 3)):
        positive = pairs.labels > threshold
        expected = best_accuracy(pairs.scores["cosine"], positive)[0]
        assert positive.sum() == positives
        assert pairs.metrics(positive_above=threshold)["accuracy"] == expected


def test_word_overlap_matches_reference(encoder: Encoder, corpus: Corpus) -> None:
    special = set(encoder.tokenizer.tokenizer.all_special_ids)
    bags = [[set(encoder.tokenizer.tokenizer.tokenize(text)) for text in pair[:2]] for pair in PAIRS]
    overlap = [len(one & other) / len(one | other) for one, other in bags]
    assert overlap[0] == 1.0
    assert overlap[3] < overlap[4]
    ranks = {value: np.mean([number for number, v in enumerate(sorted(overlap), 1) if v == value]) for value in overlap}
    expected = np.corrcoef([ranks[value] for value in overlap], [5, 3, 1, 2, 4])[0, 1]
    assert word_overlap(corpus, special) == pytest.approx(float(expected))


def test_word_overlap_ignores_special_tokens(tmp_path: Path, encoder: Encoder) -> None:
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
