"""Five labelled pairs, which several test files measure models on."""

from __future__ import annotations

from pathlib import Path

from conftest import write_jsonl

PAIRS = [
    ("the dog sleeps", "the dog sleeps", 5.0),
    ("the dog sleeps", "the cat sleeps", 3.0),
    ("the cat sleeps", "a woman eats the apple", 0.0),
    ("two birds", "the dog sleeps", 1.0),
    ("a woman eats the apple", "the woman eats", 4.0),
]


def write_pairs(folder: Path) -> Path:
    """Write the pairs as a file in format A."""
    rows = [{"text1": text1, "text2": text2, "label": label} for text1, text2, label in PAIRS]
    return write_jsonl(folder / "pairs.jsonl", rows)
