"""The notes of a run on settings that can work but are rarely intended."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from conftest import sample_rows, start, write_jsonl

from angle import TrainConfig, build_config
from angle.training import notes, setup
from angle.training.accelerator import start_accelerator


def rows(tmp_path: Path, name: str, labels: list[float] | None = None) -> Path:
    table = sample_rows(name, "train", 20)
    if labels:
        table = [row | {"label": label} for row, label in zip(table, cycle(labels), strict=False)]
    return write_jsonl(tmp_path / f"{name}.jsonl", table)


def notes_of(path: Path, loss: dict[str, Any], lora: dict[str, Any] | None = None, **model: Any) -> list[str]:
    groups = {"loss": loss, "lora": lora or {}, "model": model, "pooling": {"strategy": "avg"}}
    config = build_config({"data": {"train": {"name_or_path": str(path)}}, **groups}, TrainConfig)
    components = setup.build(config, start_accelerator(config.train.mixed_precision))
    found = notes.notes_on(components.config, components.data, components.total_steps)
    if "name_or_path" in model:
        return found
    assert found[0] == "model=tiny is small and untrained, to try things out; for a real model add model=minilm"
    return found[1:]


@pytest.mark.parametrize(
    ("name", "labels", "loss", "expected"),
    [
        ("A", [0.0, 1.0], {}, []),
        ("B", None, {}, []),
        ("C", None, {}, []),
        (
            "C",
            None,
            {"cosine_w": 1.0, "angle_w": 0.5},
            [
                "loss.cosine_w=1 and loss.angle_w=0.5 have no effect on format C, which has only the in-batch and "
                "reverse in-batch losses",
            ],
        ),
        (
            "C",
            None,
            {"angle_w": 1.0, "ibn_w": 1.0},
            ["loss.angle_w=1 has no effect on format C, which has only the in-batch and reverse in-batch losses"],
        ),
        (
            "B",
            None,
            {"cosine_w": 1.0},
            ["loss.cosine_w=1 ranks cosines of triples; the usual weight for format B is 0"],
        ),
        (
            "B",
            None,
            {"ibn_w": 1.0},
            ["loss.ibn_w=1 is low: for format B without graded labels, 10 to 35 is usual"],
        ),
        (
            "A",
            [0.0, 1.0],
            {"ibn_w": 0.0},
            ["loss.ibn_w=0 is low: for format A without graded labels, 10 to 35 is usual"],
        ),
        ("B", None, {"ibn_w": 5.0, "reverse_w": 5.0}, []),
        ("A", [0.0, 2.5, 5.0], {}, []),
        ("A", [0.0, 2.5, 5.0], {"ibn_w": 0.0}, []),
        (
            "A",
            [0.5, 2.5, 5.0],
            {"ibn_w": 20.0},
            [
                "labels above 0 make a pair a positive of the in-batch loss, here 100% of the rows; for graded labels "
                "set loss.positive_above, or loss.ibn_w=0",
            ],
        ),
        ("A", [1.0], {}, ["every label is 1, so there is nothing to rank"]),
        (
            "A",
            [0.0, 1.0],
            {"positive_above": 4.0},
            [
                "no label is above loss.positive_above=4, so the in-batch loss has no positives and is 0: set "
                "loss.positive_above below 1, or loss.ibn_w=0"
            ],
        ),
        (
            "A",
            [0.0, 1.0],
            {"positive_above": 4.0, "ibn_w": 0.0},
            ["loss.ibn_w=0 is low: for format A without graded labels, 10 to 35 is usual"],
        ),
    ],
)
def test_notes(
    tmp_path: Path, name: str, labels: list[float] | None, loss: dict[str, Any], expected: list[str]
) -> None:
    assert notes_of(rows(tmp_path, name, labels), loss) == expected


@pytest.mark.parametrize(
    ("setting", "total_steps", "count"), [(1000, 1000, 1), (1000, 1001, 0), (1, 1, 1), (0.9, 1, 0)]
)
def test_note_on_warmup_longer_than_the_run(setting: float, total_steps: int, count: int) -> None:
    warmup_notes = list(notes._on_warmup(setting, total_steps))
    assert len(warmup_notes) == count
    text = f"train.warmup_steps={setting:g} does not end within the run's {total_steps:,} step"
    assert all(text in note for note in warmup_notes)


def test_note_on_8_bit_embeddings_depending_on_the_batch(tmp_path: Path, folder_of: Callable[[str], str]) -> None:
    path, lora = rows(tmp_path, "B"), {"enabled": True, "r": 2}
    (note,) = notes_of(path, {}, lora, name_or_path=folder_of("llama"), load_kbit=8)
    assert note.startswith("model.load_kbit=8 rounds a layer's inputs over all tokens of a batch, so the other texts")
    model = {"name_or_path": folder_of("llama"), "gradient_checkpointing": True}
    _, note = notes_of(path, {}, lora, **model, load_kbit=8)
    assert note.startswith("model.gradient_checkpointing=true saves little")
    assert notes_of(path, {}, lora, **model, load_kbit=4) == []
    assert notes_of(path, {}, lora, name_or_path=folder_of("llama"), load_kbit=4) == []


@pytest.mark.parametrize(
    ("train", "lora", "dtype", "starts"),
    [
        ({}, False, "float32", ["everything is computed in float32; train.mixed_precision=bf16"]),
        ({"mixed_precision": "bf16"}, False, "float32", []),
        ({"mixed_precision": "bf16"}, True, "float32", ["the frozen weights are float32"]),
        ({"mixed_precision": "bf16"}, True, "bfloat16", []),
    ],
)
def test_note_on_faster_precision_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, train: dict[str, Any], lora: bool, dtype: str, starts: list[str]
) -> None:
    config = build_config({"train": train, "model": {"dtype": dtype}}, TrainConfig)
    assert list(notes._on_precision(config.model, config.train.mixed_precision, lora=lora)) == []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    precision_notes = list(notes._on_precision(config.model, config.train.mixed_precision, lora=lora))
    assert [note[: len(text)] for note, text in zip(precision_notes, starts, strict=True)] == starts


def test_notes_are_repeated_by_each_call(tmp_path: Path) -> None:
    path = rows(tmp_path, "B")
    assert len(notes_of(path, {"ibn_w": 1.0})) == 1
    assert notes_of(path, {"ibn_w": 1.0}) == notes_of(path, {"ibn_w": 1.0})


@pytest.mark.slow
def test_a_sweep_gives_a_note_once(tmp_path: Path) -> None:
    words = [f"data.train.name_or_path={rows(tmp_path, 'C')}", "loss.angle_w=1", "train.seed=1,2", "train.max_steps=1"]
    result = start("train.py", "-m", "data=files", *words, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("note    loss.angle_w=1 has no effect on format C") == 1
    assert result.stdout.count("20 in-batch (tau 20)\n") == 1
    assert [result.stdout.count(f"linear, seed {seed}, dropout 0\n") for seed in (1, 2)] == [1, 1]
