"""What the gradient cache costs and saves: python -m benchmarks.gradient_cache [--large 16384] [...]

The gradient of one batch of triples is computed in one pass, and in micro-batches of limited numbers of tokens. A large
batch in micro-batches is compared with one pass over as many rows as fit into one micro-batch. There is no optimiser.
Each figure comes from separate processes, which alternate; the last micro-batch runs once as a warm-up.
"""

from __future__ import annotations

import argparse
import multiprocessing
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from angle import TrainConfig, build_config
from angle.kernels.allocator import keep_freed_memory
from angle.training import setup
from angle.training.accelerator import start_accelerator
from angle.training.gradient_cache import GradientCache, micro_batches
from benchmarks.throughput import prepare
from benchmarks.throughput.clock import peak_memory, synchronize
from benchmarks.throughput.figures import ratio, step_time
from benchmarks.throughput.jobs import SEED
from benchmarks.throughput.report import MIB, commit, hardware, spread, versions

COLUMNS = ("batch", "tokens", "micro-batches", "time a row", "against one pass", "memory")
NOTES = (
    "Tokens: of the batch's distinct texts, special tokens included, cut at --max-length, without padding.",
    "Time: the median of all steps, in brackets the medians of the best and the worst round. Against one pass: the "
    "median of the rounds, in brackets the lowest and the highest.",
    "Memory: resident memory of the process, libraries included, at its highest; on a GPU what torch had allocated.",
)


@dataclass(frozen=True)
class Task:
    """What one process measures."""

    model: str
    """Folder of a checkpoint."""
    rows: str
    """A .jsonl file of triples."""
    count: int
    """Number of rows in the batch, taken from the start of the file."""
    budget: int | None
    """Maximum tokens per micro-batch, None for one pass."""
    precision: str
    max_length: int
    """Maximum tokens per text."""
    steps: int


@dataclass(frozen=True)
class Found:
    """What one process measured."""

    seconds: list[float]
    """Time of each step."""
    memory: int
    tokens: int
    parts: int
    """Number of micro-batches."""


def measure(task: Task) -> Found:
    """Compute the gradient of the same batch `task.steps` times."""
    settings: dict[str, Any] = {
        "model": {"name_or_path": task.model, "max_length": task.max_length},
        "pooling": {"strategy": "avg"},
        "data": {"train": {"name_or_path": task.rows}, "shuffle": False},
        "train": {
            "batch_size": task.count,
            "mixed_precision": "bf16" if task.precision == "bf16" else "no",
            "seed": SEED,
        },
    }
    config = build_config(settings, TrainConfig)
    accelerator = start_accelerator(config.train.mixed_precision)
    built = setup.build(config, accelerator)
    with keep_freed_memory(built.trainable):  # as in training
        return _timed_steps(task, built, accelerator)


def _timed_steps(task: Task, built: setup.Built, accelerator: Accelerator) -> Found:
    batch = next(built.data.train.steps(0))[0]
    model = accelerator.prepare(built.trainable).train()
    step = GradientCache(model, built.objective, None, accelerator, task.budget)
    parts = micro_batches(batch.max_lengths, step.token_budget)
    embeddings, _ = model(*batch.micro_batch(parts[-1], accelerator.device))
    embeddings.sum().backward()
    del embeddings
    seconds = []
    for _ in range(task.steps):
        model.zero_grad()
        synchronize()
        start = time.perf_counter()
        step.forward_backward(batch)
        synchronize()
        seconds.append(time.perf_counter() - start)
    return Found(seconds, peak_memory(), len(batch.tokens.ids), len(parts))


def in_turn(tasks: Sequence[Task], rounds: int) -> list[list[Found]]:
    """Return the results of each task by round; tasks alternate, each time in a new process."""
    found: list[list[Found]] = [[] for _ in tasks]
    for _ in range(rounds):
        for task, own in zip(tasks, found, strict=True):
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                own.append(process.submit(measure, task).result())
            how = "one pass" if task.budget is None else f"{own[-1].parts:,} micro-batches"
            seconds = step_time([own[-1].seconds]).median
            print(f"  {task.count:,} rows, {how}: {seconds:,.2f} s", file=sys.stderr, flush=True)
    return found


def fitting(rows: Sequence[Sequence[str]], lengths: dict[str, int], budget: int) -> int:
    """Return how many leading rows, at least 2, have at most `budget` tokens in their distinct texts."""
    seen: set[str] = set()
    tokens = 0
    for count, texts in enumerate(rows):
        new = set(texts) - seen
        tokens += sum(lengths[text] for text in new)
        if tokens > budget:
            return max(count, 2)
        seen |= new
    return len(rows)


def table(tasks: Sequence[Task], found: Sequence[Sequence[Found]]) -> str:
    """Return a table of all tasks' results; the first task is the single pass that the others are compared with."""
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    by_row = [
        [[second / task.count for second in one.seconds] for one in own] for task, own in zip(tasks, found, strict=True)
    ]
    for task, own, rounds in zip(tasks, found, by_row, strict=True):
        how = "one pass" if task.budget is None else f"at most {task.budget:,} tokens at once"
        cells = [
            f"{task.count:,} rows, {how}",
            f"{own[0].tokens:,}",
            f"{own[0].parts:,}",
            spread(step_time(rounds), 1000, ",.2f", " ms"),
            "" if task is tasks[0] else spread(ratio(rounds, by_row[0]), 1, ".2f"),
            f"{max(one.memory for one in own) / MIB:,.0f} MiB",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def parse(words: list[str]) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gradient_cache",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default="sentence-transformers/all-MiniLM-L6-v2", help="a folder or a hub name")
    parser.add_argument(
        "--rows-file", default="SeanLee97/all_nli_angle_format_b", help="triples (B): a file or a hub name"
    )
    parser.add_argument("--rows", type=int, default=256, help="rows of the batch that is also taken in one pass")
    parser.add_argument(
        "--budgets", nargs="+", type=int, default=[8192, 4096, 2048, 1024], help="tokens of its micro-batches"
    )
    parser.add_argument("--large", type=int, help="rows of a large batch; left out unless given")
    parser.add_argument("--large-budget", type=int, default=8192, help="tokens of its micro-batches")
    parser.add_argument("--precision", choices=("float32", "bf16"), default="float32")
    parser.add_argument("--max-length", type=int, default=128, help="tokens of a text")
    parser.add_argument("--steps", type=int, default=3, help="steps of a round; of the large batch one")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each kind; of the large batch one")
    parser.add_argument("--markdown", type=Path, help="a file that gets the run's section for RESULTS.md")
    options = parser.parse_args(words)
    if min(options.rounds, options.steps, options.large_budget, *options.budgets) < 1:
        parser.error("--rounds, --steps, --budgets and --large-budget must be at least 1")
    if min(options.rows, options.large or 2) < 2:
        parser.error("--rows and --large must be at least 2")
    return options


def main() -> None:
    """Measure, and print the tables."""
    options = parse(sys.argv[1:])
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    rows, _ = prepare.choose(prepare.read_rows(options.rows_file, "train", "B"), max(options.rows, options.large or 0))
    model = prepare.find_model(options.model)
    lines = [
        f"## {time.strftime('%Y-%m-%d')}, {hardware(device)}",
        "",
        "```bash",
        shlex.join(["python", "-m", "benchmarks.gradient_cache", *sys.argv[1:]]),
        "```",
        "",
        f"This project at {commit()}: {versions('torch', 'transformers', 'accelerate')}; {torch.get_num_threads()} "
        f"threads, {options.precision}.",
    ]
    print("\n".join(lines), flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        path = prepare.write_rows(Path(scratch) / "rows.jsonl", rows)
        plain = Task(str(model), path, options.rows, None, options.precision, options.max_length, options.steps)
        sets = [([plain, *(replace(plain, budget=budget) for budget in options.budgets)], options.rounds)]
        if options.large:
            texts = [[row[column] for column in prepare.COLUMNS["B"]] for row in rows]
            lengths = prepare.text_lengths(model, [text for row in texts for text in row], options.max_length)
            few = replace(plain, count=fitting(texts, lengths, options.large_budget))
            large = replace(plain, count=options.large, budget=options.large_budget, steps=1)
            sets.append(([few, large], 1))
        for tasks, rounds in sets:
            lines += ["", table(tasks, in_turn(tasks, rounds))]
            print(f"\n{lines[-1]}", flush=True)
            if options.markdown:
                section = "\n".join([*lines, "", *(f"- {note}" for note in NOTES)]) + "\n"
                options.markdown.write_text(section, encoding="utf-8")
    print("\n" + "\n".join(NOTES))


if __name__ == "__main__":
    main()
