"""Which rows count as graded, and what their loss is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import sample_rows, write_jsonl

from angle import TrainConfig, build_config
from angle.config import LossConfig
from angle.training import setup
from angle.training.accelerator import start_accelerator


def resolved(**groups: Any) -> TrainConfig:
    config = build_config(groups, TrainConfig)
    return setup.build(config, start_accelerator(config.train.mixed_precision)).config


def pairs(folder: Path, labels: list[float]) -> str:
    rows = [row | {"label": labels[n % len(labels)]} for n, row in enumerate(sample_rows("A", "train", 12))]
    return str(write_jsonl(folder / f"{len(labels)}.jsonl", rows))


@pytest.mark.parametrize(
    ("labels", "requested", "graded"),
    [
        ([0.0, 1.0], None, False),
        ([0.0, 1.0], True, True),
        ([0.0, 2.5, 5.0], None, True),
        ([0.0, 2.5, 5.0], False, False),
    ],
)
def test_labels_are_graded_if_there_are_more_than_two(
    tmp_path: Path, labels: list[float], requested: bool | None, graded: bool
) -> None:
    config = resolved(data={"train": {"name_or_path": pairs(tmp_path, labels)}}, data_format={"graded": requested})
    assert config.data_format.graded == graded
    loss = config.loss
    expected = (1.0, 0.0, 0.0, 5.0, 5.0) if graded else (1.0, 20.0, 1.0, 20.0, 20.0)
    assert (loss.cosine_w, loss.ibn_w, loss.angle_w, loss.cosine_tau, loss.angle_tau) == expected


def test_the_sample_is_not_graded() -> None:
    config = resolved(data={"train": {"name_or_path": "sample"}})
    assert config.data_format.graded is False
    assert (config.loss.ibn_w, config.loss.positive_above) == (20.0, 4.0)


@pytest.mark.parametrize("requested", [None, True])
def test_each_source_of_a_mixture_has_labels_of_its_own(tmp_path: Path, requested: bool | None) -> None:
    triples = str(write_jsonl(tmp_path / "triples.jsonl", sample_rows("B", "train", 12)))
    files = {"one": pairs(tmp_path, [0.0, 2.5, 5.0]), "two": pairs(tmp_path, [0.0, 1.0]), "three": triples}
    sources = {name: {"name_or_path": file} for name, file in files.items()}
    config = resolved(data={"train": {"name_or_path": None, "sources": sources}}, data_format={"graded": requested})
    found = {loss.source: loss.config for loss in config.losses}
    assert found["one"].is_of_graded_labels
    assert found["two"].is_of_graded_labels == bool(requested)
    assert found["three"] == LossConfig(positive_above=0.0).for_format("B")
