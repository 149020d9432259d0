"""The frontier: every cell against the model that is cut to it, the list of what pays, the files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import sample_rows, write_jsonl

from angle import ConfigError, Encoder, EvaluateConfig, ModelConfig, PoolingConfig, build_config
from angle.evaluation.grid import Grid, evaluate_grid
from angle.evaluation.metrics import spearman
from angle.modeling.embedding_config import EmbeddingConfig


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "pairs.jsonl", sample_rows("A", "test", 40))


def settings(folder: str, pairs: Path, **overrides: object) -> EvaluateConfig:
    return build_config(
        {
            "model": {"name_or_path": folder},
            "pooling": {"strategy": "avg"},
            "tasks": [str(pairs)],
            "ese_grid": True,
            "output_dir": str(pairs.parent / "grid"),
            **overrides,
        },
        EvaluateConfig,
    )


def make_grid(scores: list[list[float]]) -> Grid:
    rows, columns = np.shape(scores)
    depths, widths = tuple(range(1, rows + 1)), tuple(8 * 2**n for n in range(columns))
    by_task = {"task": np.array(scores)}
    return Grid(depths, widths, rows, widths[-1], by_task, Path("x"), EmbeddingConfig("avg", 64))


@pytest.mark.parametrize("name", ["bert", "gemma3_text"])
def test_grid_cell_is_the_score_of_the_truncated_model(folder_of: Callable[[str], str], pairs: Path, name: str) -> None:
    grid = evaluate_grid(settings(folder_of(name), pairs))
    assert (grid.depths, grid.widths) == ((1, 2, 3), (8, 16, 32))
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    for row, depth in enumerate(grid.depths):
        for column, width in enumerate(grid.widths):
            encoder = Encoder.load(ModelConfig(folder_of(name)), PoolingConfig("avg")).eval()
            encoder.truncate(depth, width)
            left, right = (encoder.encode([pair[side] for pair in rows]) for side in ("text1", "text2"))
            assert left.shape[1] == width
            score = spearman(torch.cosine_similarity(left.double(), right.double()), [pair["label"] for pair in rows])
            assert grid.mean[row, column] == pytest.approx(score, abs=1e-3)
    assert grid.score == grid.mean[2, 2]


def test_grid_files(folder_of: Callable[[str], str], pairs: Path) -> None:
    grid = evaluate_grid(settings(folder_of("bert"), pairs, ese_depths=[3, 1], ese_widths=[32, 4]))
    written = json.loads((grid.folder / "grid.json").read_text())
    assert (written["depths"], written["widths"]) == ([1, 3], [4, 32])
    assert written["spearman_cosine"] == {str(pairs): grid.mean.tolist()}
    assert (grid.folder / "grid.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match="holds results already"):
        evaluate_grid(settings(folder_of("bert"), pairs))


def test_pareto_frontier_matches_reference() -> None:
    grid = make_grid([[0.5, 0.6, 0.4], [0.5, 0.7, 0.71]])
    assert grid.pareto() == [(2, 32, 0.71), (2, 16, 0.7), (1, 16, 0.6), (1, 8, 0.5)]


def test_grid_prints_scores_and_pareto_optimal_sizes() -> None:
    assert str(make_grid([[0.5, 0.6], [0.4, 0.8]])) == (
        "  Spearman  dimensions\n"
        "    layers       8      16\n"
        "         1   50.00   60.00\n"
        "         2   40.00   80.00\n"
        "\n"
        "Pareto-optimal sizes\n"
        "\n"
        "  layers  dimensions  Spearman  encoding  storage\n"
        "       2          16     80.00      100%     100%\n"
        "       1          16     60.00       50%     100%\n"
        "       1           8     50.00       50%      50%"
    )


def test_more_layers_than_the_model_has_are_refused(folder_of: Callable[[str], str], pairs: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        evaluate_grid(settings(folder_of("bert"), pairs, ese_depths=[1, 4]))
    assert str(caught.value) == "ese_depths=[1, 4] cannot work: the model has 3 layers; choose from 1 to 3."
    assert not (pairs.parent / "grid").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"ese_grid": False, "ese_widths": [8]},
            "ese_widths=[8] has no effect without a grid: add ese_grid=true, or leave it out.",
        ),
        (
            {"positive_above": 3.0},
            "positive_above=3 has no effect with ese_grid=true, which has no accuracy: leave one out.",
        ),
        ({"ese_depths": [0]}, "ese_depths=0 cannot work: it must be at least 1."),
        ({"ese_depths": []}, "ese_depths=0 cannot work: it must be at least 1."),
    ],
)
def test_invalid_grid_settings_are_refused(tmp_path: Path, overrides: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settings("tiny", tmp_path / "x", **overrides)
    assert str(caught.value) == message
