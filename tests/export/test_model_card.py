"""The scores of a model card: each under the name of what was measured, for the rows it was measured on."""

from __future__ import annotations

from typing import Any

from huggingface_hub import ModelCard

from angle.config import TrainConfig
from angle.config.build import build_config
from angle.export.model_card import PushedModel, SentenceTransformersSupport, model_card
from angle.modeling.embedding_config import EmbeddingConfig

MODEL = PushedModel(
    "user/my-encoder", EmbeddingConfig("avg", 64), "tiny", False, 128, SentenceTransformersSupport.NEVER
)
DATA = {
    "train": {"name_or_path": "/data/triples.jsonl"},
    "valid": {"name_or_path": "/data/held-out.jsonl"},
    "valid_sts": {"name_or_path": "/data/dev.jsonl"},
    "test": {"name_or_path": "/data/test.jsonl"},
}
RESULT = {
    "best_score": 0.75, "best_step": 30, "valid_before": {"spearman": 0.375, "triplet_accuracy": 0.5},
    "test_before": 0.25, "test_after": 0.5, "test_word_overlap": 0.125,
}  # fmt: skip
TEST_ROWS = (
    "| test.jsonl | 50.00 |\n| test.jsonl, before training | 25.00 |\n| test.jsonl, of shared words alone | 12.50 |"
)


def card_of(best_metric: str | None) -> str:
    """Return the card of a run whose best model this metric chose."""
    config = build_config({"data": DATA, "train": {"best_metric": best_metric}}, TrainConfig)
    record: dict[str, Any] = {"command": ["train.py"], "versions": {}, "git_commit": None, "texts": 10, "seconds": 1.0}
    record |= {"hardware": {"processes": 1, "gpu": None, "device": "cpu"}, "result": RESULT}
    return model_card(MODEL, config, record)


def evaluated(card: str) -> dict[str, tuple[str, float]]:
    """Return what the metadata says of each data set: the metric's type and its value."""
    results = ModelCard(card).data.eval_results
    return {str(result.dataset_name): (result.metric_type, result.metric_value) for result in results}


def test_correlations_are_one_table() -> None:
    card = card_of(None)
    valid_rows = "| dev.jsonl, step 30 | 75.00 |\n| dev.jsonl, before training | 37.50 |"
    assert f"| measured on | Spearman |\n|---|---|\n{valid_rows}\n{TEST_ROWS}\n" in card
    assert evaluated(card) == {"test.jsonl": ("spearman_cosine", 0.5), "dev.jsonl": ("spearman_cosine", 0.75)}


def test_another_metric_has_its_own_table_and_its_own_rows() -> None:
    card = card_of("triplet_accuracy")
    rows = "| held-out.jsonl, step 30 | 75.00 |\n| held-out.jsonl, before training | 50.00 |"
    assert f"| measured on | triplet accuracy |\n|---|---|\n{rows}\n" in card
    assert f"| measured on | Spearman |\n|---|---|\n{TEST_ROWS}\n" in card
    assert evaluated(card) == {"test.jsonl": ("spearman_cosine", 0.5)}
