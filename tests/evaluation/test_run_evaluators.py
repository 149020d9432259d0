"""Which evaluators a run has, which of their metrics chooses the best model, and what encoding they share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from torch import Tensor
from word_vectors import context, corpus_of, word_vectors

from angle.data.corpus import Corpus
from angle.errors import ConfigError
from angle.evaluation.evaluator import with_embedding_cache
from angle.evaluation.evaluators import validation_evaluators
from angle.evaluation.run_evaluators import RunEvaluators, metric_named, validation_purpose
from angle.structures import Tokens

ROWS = {
    "A": [{"text1": "owl", "text2": "fox", "label": 1.0}, {"text1": "owl", "text2": "red", "label": 0.0}],
    "B": [{"text": "owl", "positive": "fox", "negative": "red"}] * 2,
    "C": [{"text": "owl", "positive": "fox"}, {"text": "red", "positive": "moon"}],
}
VECTORS = {"owl": (1.0, 0.1), "fox": (1.0, 0.0), "red": (0.0, 1.0), "moon": (0.1, 1.0)}
METRICS = {
    "A": {"loss", "loss/cosine", "loss/ibn", "loss/angle", "spearman"},
    "B": {"in_batch_accuracy", "loss", "loss/ibn", "loss/angle", "triplet_accuracy"},
    "C": {"in_batch_accuracy", "loss", "loss/ibn"},
}


def build(folder: Path, valid: str | None, valid_sts: str | None, best_metric: str | None = None) -> RunEvaluators:
    """Return the evaluators of a run with rows of these formats."""
    corpora: dict[str, Corpus | None] = {"test": None}
    for purpose, data_format in (("valid", valid), ("valid_sts", valid_sts)):
        corpora[purpose] = None if data_format is None else corpus_of(folder, ROWS[data_format])
    if valid == valid_sts == "A":
        corpora["valid_sts"] = corpora["valid"]
    return RunEvaluators.build(corpora, best_metric, context())


def test_every_module_offers_an_evaluator_with_a_name_and_a_metric_of_its_own() -> None:
    evaluators = validation_evaluators()
    assert {"in_batch", "loss", "retrieval", "sts", "triplet"} <= {evaluator.name for evaluator in evaluators}
    assert len({evaluator.name for evaluator in evaluators}) == len(evaluators)
    assert len({evaluator.metric.name for evaluator in evaluators}) == len(evaluators)
    for evaluator in evaluators:
        assert evaluator.purpose in ("valid", "valid_sts", "valid_retrieval")
        assert evaluator.formats <= ({"retrieval"} if evaluator.purpose == "valid_retrieval" else set("ABC"))
        assert validation_purpose(evaluator.metric.name) == evaluator.purpose


@pytest.mark.parametrize("data_format", "ABC")
def test_metrics_of_a_format(tmp_path: Path, data_format: str) -> None:
    evaluators = build(tmp_path, data_format, "A" if data_format == "A" else None)
    values = evaluators.validate(word_vectors(VECTORS))
    assert METRICS[data_format] <= values.keys()
    of_other_formats = set().union(*METRICS.values()) - METRICS[data_format]
    assert of_other_formats.isdisjoint(values)


def test_a_set_is_encoded_once(tmp_path: Path) -> None:
    calls = []

    def encode(tokens: Tokens, depths: Sequence[int] | None = None) -> Tensor:
        calls.append(len(tokens))
        return word_vectors(VECTORS)(tokens)

    evaluators = build(tmp_path, "A", "A")
    for _ in range(2):  # the model changes between two evaluations
        evaluators.validate(with_embedding_cache(encode))
    assert calls == [3, 3]
    calls.clear()
    build(tmp_path, "C", "A").validate(with_embedding_cache(encode))
    assert sorted(calls) == [3, 4]


@pytest.mark.parametrize(
    ("valid", "valid_sts", "requested", "chosen"),
    [
        (None, None, None, None),
        ("B", None, None, None),
        ("C", "A", None, "spearman"),
        ("A", "A", None, "spearman"),
        ("A", "A", "loss", "loss"),
        ("B", None, "triplet_accuracy", "triplet_accuracy"),
        ("B", "A", "in_batch_accuracy", "in_batch_accuracy"),
        ("C", None, "in_batch_accuracy", "in_batch_accuracy"),
        ("C", None, "loss", "loss"),
    ],
)
def test_metric_that_chooses_the_best_model(
    tmp_path: Path, valid: str | None, valid_sts: str | None, requested: str | None, chosen: str | None
) -> None:
    best_metric = build(tmp_path, valid, valid_sts, requested).best_metric
    assert best_metric == (None if chosen is None else metric_named(chosen))


@pytest.mark.parametrize(
    ("valid", "requested", "message"),
    [
        ("C", "in_batch", "is not known; did you mean in_batch_accuracy? Choose one of: {known}."),
        (None, "accuracy", "is not known; did you mean triplet_accuracy? Choose one of: {known}."),
        (
            "C",
            "triplet_accuracy",
            "needs validation rows of format B: give data.valid.name_or_path=FILE, or choose one of: {available}.",
        ),
        (
            "B",
            "spearman",
            "needs validation rows of format A: give data.valid_sts.name_or_path=FILE, or choose one of: {available}.",
        ),
        (None, "loss", "needs validation rows of format A or B or C: give data.valid.name_or_path=FILE."),
        (None, "ndcg@10", "needs validation queries and judgements: give data.valid_retrieval.name_or_path=FOLDER."),
        (None, "ndcg", "is not known; did you mean ndcg@10? Choose one of: {known}."),
    ],
)
def test_unavailable_best_metric_is_refused(tmp_path: Path, valid: str | None, requested: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(tmp_path, valid, None, requested)
    known = ", ".join(evaluator.metric.name for evaluator in validation_evaluators())
    available = ", ".join(evaluator.metric.name for evaluator in build(tmp_path, valid, None).validation)
    message = message.format(known=known, available=available)
    assert str(caught.value) == f"train.best_metric={requested} {message}"


def test_metric_is_better() -> None:
    loss, accuracy = metric_named("loss"), metric_named("triplet_accuracy")
    assert loss.is_better(0.4, 0.5)
    assert not loss.is_better(0.5, 0.4)
    assert not accuracy.is_better(0.4, 0.5)
    for metric in (loss, accuracy):
        assert metric.is_better(-3.0, None)
        assert not metric.is_better(0.5, 0.5)  # the first one stays
        assert not metric.is_better(float("nan"), 0.5)
        assert not metric.is_better(float("nan"), None)
        assert metric.score(metric.score(0.3)) == 0.3
    assert loss.score(0.4) > loss.score(0.5)
