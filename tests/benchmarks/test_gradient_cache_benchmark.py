"""The benchmark of the gradient cache: what it measures, and how it is reported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fork_server
import pytest
from conftest import REPO, write_jsonl

from benchmarks import gradient_cache
from benchmarks.gradient_cache import BenchmarkCase, Measurement, measure, rows_within_budget, table


def triples(count: int) -> list[dict[str, Any]]:
    """Return rows without a text that another one has."""
    sides = ("a fox", "an owl", "the moon")
    return [
        dict(zip(("text", "positive", "negative"), (f"{side} {row}" for side in sides), strict=True))
        for row in range(count)
    ]


def test_case_is_one_batch_in_micro_batches(folder_of: Callable[[str], str], tmp_path: Path) -> None:
    rows = write_jsonl(tmp_path / "rows.jsonl", triples(12))
    plain = BenchmarkCase(folder_of("bert"), str(rows), 8, None, "float32", 64, 2)
    whole, half = measure(plain), measure(replace(plain, count=4))
    assert whole.num_micro_batches == half.num_micro_batches == 1
    assert whole.tokens == 2 * half.tokens
    budget = whole.tokens // 3
    cut = measure(replace(plain, budget=budget, steps=1))
    assert cut.tokens == whole.tokens
    assert 3 <= cut.num_micro_batches <= 5
    assert [len(measurement.seconds) for measurement in (whole, cut)] == [2, 1]
    assert cut.memory > 10 * 2**20


def test_rows_within_budget_counts_distinct_texts() -> None:
    rows, lengths = [["a", "b"], ["a", "c"], ["c", "c"], ["d", "a"]], {"a": 3, "b": 5, "c": 7, "d": 1}
    assert [rows_within_budget(rows, lengths, budget) for budget in (1, 14, 15, 16, 99)] == [2, 2, 3, 4, 4]


def test_table_compares_time_per_row() -> None:
    plain = BenchmarkCase("", "", 10, None, "float32", 64, 2)
    large = replace(plain, count=80, budget=512, steps=1)
    measurements = [
        [Measurement([1.0, 3.0], 2**20, 50, 1), Measurement([4.0, 6.0], 3 * 2**20, 50, 1)],
        [Measurement([24.0], 2**21, 500, 4), Measurement([80.0], 2**21, 500, 4)],
    ]
    assert table([plain, large], measurements).splitlines()[2:] == [
        "| 10 rows, one pass | 50 | 1 | 350.00 ms [200.00, 500.00] |  | 3 MiB |",
        "| 80 rows, at most 512 tokens at once | 500 | 4 | 650.00 ms [300.00, 1,000.00] | 1.75 [1.50, 2.00] | 2 MiB |",
    ]


@pytest.mark.slow
def test_the_command_writes_a_section(folder_of: Callable[[str], str], tmp_path: Path) -> None:
    rows, markdown = write_jsonl(tmp_path / "rows.jsonl", triples(30)), tmp_path / "section.md"
    words = f"--model {folder_of('bert')} --rows-file {rows} --rows 6 --budgets 40 --steps 1 --rounds 1 --large 30"
    words += f" --large-budget 60 --max-length 64 --markdown {markdown}"
    env = fork_server.environment()
    done = fork_server.run(["-m", "benchmarks.gradient_cache", *words.split()], REPO, env, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = markdown.read_text().splitlines()
    batches = [line.split(" | ")[0].removeprefix("| ") for line in lines if " rows, " in line]
    assert batches[:2] == ["6 rows, one pass", "6 rows, at most 40 tokens at once"]
    assert batches[3] == "30 rows, at most 60 tokens at once"
    assert 2 <= int(batches[2].removesuffix(" rows, one pass")) < 30
    assert set(lines) <= {*done.stdout.splitlines(), *(f"- {note}" for note in gradient_cache.NOTES)}
