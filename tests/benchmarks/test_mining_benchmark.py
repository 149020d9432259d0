"""The benchmark of exact search: it runs, and its file holds what it says."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import mining


def test_blocks_of_a_file_are_unit_vectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mining, "PASSAGES_AT_ONCE", 40)
    mining.write_vectors(tmp_path / "x.npy", 100, 8)
    parts = list(mining.blocks(tmp_path / "x.npy", 100))
    assert [len(part) for part in parts] == [40, 40, 20]
    assert torch.cat(parts).norm(dim=1).numpy() == pytest.approx(np.ones(100), abs=1e-5)


def test_it_prints_time_and_memory(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["mining", "--passages", "200", "--queries", "3", "--width", "8"])
    mining.main()
    assert capsys.readouterr().out.startswith("3 queries, 200 passages of 8 dimensions, 31 neighbours of each, ")
