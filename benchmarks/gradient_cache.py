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
class BenchmarkCase:
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
class Measurement:
    """What one process measured."""

    seconds: list[float]
    """Time of each step."""
    memory: int
    tokens: int
    num_micro_batches: int


def measure(case: BenchmarkCase) -> Measurement:
    """Compute the gradient of the same batch `case.steps` times."""
    settings: dict[str, Any] = {
        "model": {"name_or_path": case.model, "max_length": case.max_length},
        "pooling": {"strategy": "avg"},
        "data": {"train": {"name_or_path": case.rows}, "shuffle": False},
        "train": {
            "batch_size": case.count,
            "mixed_precision": "bf16" if case.precision == "bf16" else "no",
            "seed": SEED,
        },
    }
    config = build_config(settings, TrainConfig)
    accelerator = start_accelerator(config.train.mixed_precision)
    components = setup.build(config, accelerator)
    with keep_freed_memory(components.trainable):  # as in training
        return _timed_steps(case, components, accelerator)


def _timed_steps(case: BenchmarkCase, components: setup.RunComponents, accelerator: Accelerator) -> Measurement:
    batch = next(components.data.train.steps(0))[0]
    model = accelerator.prepare(components.trainable).train()
    gradient_cache = GradientCache(model, components.objective, None, accelerator, case.budget)
    slices = micro_batches(batch.max_lengths, gradient_cache.token_budget)
    embeddings, _ = model(*batch.micro_batch(slices[-1], accelerator.device))
    embeddings.sum().backward()
    del embeddings
    seconds = []
    for _ in range(case.steps):
        model.zero_grad()
        synchronize()
        start = time.perf_counter()
        gradient_cache.forward_backward(batch)
        synchronize()
        seconds.append(time.perf_counter() - start)
    return Measurement(seconds, peak_memory(), len(batch.tokens.ids), len(slices))


def measure_alternating(cases: Sequence[BenchmarkCase], rounds: int) -> list[list[Measurement]]:
    """Return the measurements of each case by round; cases alternate, each time in a new process."""
    # Each process is a fork of one that has imported all of this and nothing else.
    forkserver = multiprocessing.get_context("forkserver")
    forkserver.set_forkserver_preload(["benchmarks.gradient_cache"])
    measurements: list[list[Measurement]] = [[] for _ in cases]
    for _ in range(rounds):
        for case, case_measurements in zip(cases, measurements, strict=True):
            with ProcessPoolExecutor(1, forkserver) as process:
                case_measurements.append(process.submit(measure, case).result())
            label = "one pass" if case.budget is None else f"{case_measurements[-1].num_micro_batches:,} micro-batches"
            seconds = step_time([case_measurements[-1].seconds]).median
            print(f"  {case.count:,} rows, {label}: {seconds:,.2f} s", file=sys.stderr, flush=True)
    return measurements


def rows_within_budget(rows: Sequence[Sequence[str]], lengths: dict[str, int], budget: int) -> int:
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


def table(cases: Sequence[BenchmarkCase], measurements: Sequence[Sequence[Measurement]]) -> str:
    """Return a table of all cases' measurements; the others are compared with the first case, the single pass."""
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    by_row = [
        [[second / case.count for second in measurement.seconds] for measurement in case_measurements]
        for case, case_measurements in zip(cases, measurements, strict=True)
    ]
    for case, case_measurements, rounds in zip(cases, measurements, by_row, strict=True):
        label = "one pass" if case.budget is None else f"at most {case.budget:,} tokens at once"
        cells = [
            f"{case.count:,} rows, {label}",
            f"{case_measurements[0].tokens:,}",
            f"{case_measurements[0].num_micro_batches:,}",
            spread(step_time(rounds), 1000, ",.2f", " ms"),
            "" if case is cases[0] else spread(ratio(rounds, by_row[0]), 1, ".2f"),
            f"{max(measurement.memory for measurement in case_measurements) / MIB:,.0f} MiB",
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
        plain = BenchmarkCase(
            str(model), path, options.rows, None, options.precision, options.max_length, options.steps
        )
        sets = [([plain, *(replace(plain, budget=budget) for budget in options.budgets)], options.rounds)]
        if options.large:
            texts = [[row[column] for column in prepare.COLUMNS["B"]] for row in rows]
            lengths = prepare.text_lengths(model, [text for row in texts for text in row], options.max_length)
            few = replace(plain, count=rows_within_budget(texts, lengths, options.large_budget))
            large = replace(plain, count=options.large, budget=options.large_budget, steps=1)
            sets.append(([few, large], 1))
        for cases, rounds in sets:
            lines += ["", table(cases, measure_alternating(cases, rounds))]
            print(f"\n{lines[-1]}", flush=True)
            if options.markdown:
                section = "\n".join([*lines, "", *(f"- {note}" for note in NOTES)]) + "\n"
                options.markdown.write_text(section, encoding="utf-8")
    print("\n" + "\n".join(NOTES))


if __name__ == "__main__":
    main()
