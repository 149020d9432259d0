"""The Espresso grid by hand: each cell is what the same pairs score at that depth and width."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from word_vectors import corpus_of

from angle.evaluation.evaluators.espresso_grid import EspressoGridEvaluator
from angle.evaluation.evaluators.sts import pair_scores
from angle.structures import Tokens


def test_each_cell_is_named_and_scored_on_its_own(tmp_path: Path) -> None:
    rows = [{"text1": f"a{n}", "text2": f"b{n % 7}", "label": float(n)} for n in range(20)]
    corpus = corpus_of(tmp_path, rows)
    layers = {
        depth: torch.randn(len(corpus.tokens), 4, generator=torch.Generator().manual_seed(depth)) for depth in (1, 3)
    }

    def encode(tokens: Tokens, depths: Sequence[int] | None = None) -> Tensor:
        assert depths is not None
        return torch.stack([layers[depth] for depth in depths], dim=1)

    cells = dict(EspressoGridEvaluator(corpus, (1, 3), (2, 4)).run(encode))
    assert list(cells) == ["spearman/1x2", "spearman/1x4", "spearman/3x2", "spearman/3x4"]
    for depth in (1, 3):
        for width in (2, 4):
            expected = pair_scores(layers[depth][:, :width], corpus).spearman
            assert cells[f"spearman/{depth}x{width}"] == pytest.approx(expected, rel=1e-12)
    assert len(set(cells.values())) == 4
