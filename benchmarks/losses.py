"""Time and memory of the loss, in chunks and from whole matrices: python -m benchmarks.losses [--rows 32 65536] [...]

A step is the loss of a format with its own weights, and its gradient at random embeddings, a few of which stand for
the same text. The plain peer computes the (Q, C) logits and masks in one go, and ranks as ours does; it is left out if
its matrices would not fit into memory. Each figure comes from separate processes, alternating between ours and the
peer's: the smallest time, and the largest resident memory of a whole process, including Python and torch (about 0.3
GiB).
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor

from angle.config import IN_BATCH, LossConfig
from angle.objective.combined import CombinedLoss
from angle.objective.terms import TermInputs
from angle.structures import FORMATS, BatchStructure, DataFormat
from benchmarks.throughput.clock import peak_resident

GIB = 2**30
#: Most (Q, C) float32 matrices that the plain loss holds at once: logits, their softmax, gradients, and masks.
TABLES = 6


class PlainLoss(CombinedLoss):
    """The same loss, with the contrastive term computed from matrices of all queries and candidates."""

    def __init__(self, config: LossConfig, data_format: DataFormat, dimensions: int, duplicates: str) -> None:
        """Replace the function of the contrastive term."""
        super().__init__(config, data_format, dimensions, duplicates)
        self.weighted_terms = [
            (weight, replace(term, function=self._in_batch) if term.spec == IN_BATCH else term)
            for weight, term in self.weighted_terms
        ]

    def _in_batch(self, inputs: TermInputs, scale: float) -> Tensor:
        embeddings, ids = inputs.embeddings, inputs.text_ids
        if inputs.labels is None:
            candidates = embeddings[:, 1:].transpose(0, 1).flatten(0, 1)
            target = torch.arange(len(embeddings))
            masked = torch.zeros(len(embeddings), len(candidates), dtype=torch.bool)
            if not self.keep_duplicates:
                both_ways = torch.cat([ids[:, :2], ids[:, :2].flip(1)])
                masked = plain_not_negatives(ids[:, 0], ids[:, 1:].T.flatten(), both_ways[:, 0], both_ways[:, 1])
            return plain_cross_entropy(embeddings[:, 0], candidates, target, masked, scale).mean()
        positive, texts = inputs.labels > inputs.positive_above, embeddings.flatten(0, 1)
        masked = torch.eye(len(texts), dtype=torch.bool)
        if not self.keep_duplicates:
            both_ways = torch.cat([ids[positive], ids[positive].flip(1)])
            masked |= plain_not_negatives(ids.flatten(), ids.flatten(), both_ways[:, 0], both_ways[:, 1])
        losses = plain_cross_entropy(texts, texts, torch.arange(len(texts)) ^ 1, masked, scale)
        return torch.where(positive.repeat_interleave(2), losses, losses.new_zeros(())).mean()


def plain_cross_entropy(queries: Tensor, candidates: Tensor, target: Tensor, masked: Tensor, scale: float) -> Tensor:
    """Return the loss of each query, (Q,), from the matrix of all cosines."""
    logits = scale * queries @ candidates.T
    logits = logits.masked_fill(masked.scatter(1, target[:, None], False), -torch.inf)
    return F.cross_entropy(logits, target, reduction="none")


def plain_not_negatives(queries: Tensor, candidates: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Return (Q, C) bool, from the product of the matrices of which pair has which query and which candidate."""
    of_query = (queries[:, None] == left[None, :]).float()
    of_candidate = (candidates[:, None] == right[None, :]).float()
    return (of_query @ of_candidate.T > 0) | (queries[:, None] == candidates[None, :])


def measure(
    loss_class: type[CombinedLoss], name: str, rows: int, width: int, duplicates: str, steps: int
) -> tuple[float, int]:
    """Return the shortest time of a step in seconds, and this process's peak memory in bytes."""
    data_format, generator = FORMATS[name], torch.Generator().manual_seed(0)
    roles = len(data_format.roles)
    index = torch.arange(rows * roles).view(rows, roles)
    ids = torch.randint(0, 4 * rows * roles, index.shape, generator=generator)
    labels = torch.arange(rows).float() % 2 if data_format.labelled else None
    structure = BatchStructure.of_columns(data_format, index, ids, labels)
    loss = loss_class(LossConfig(reverse_w=0.0), data_format, width, duplicates)
    embeddings = torch.randn(rows * roles, width, generator=generator).requires_grad_()
    best = float("inf")
    for _ in range(steps):
        embeddings.grad = None
        start = time.perf_counter()
        loss(embeddings, structure).total.backward()
        best = min(best, time.perf_counter() - start)
    return best, peak_resident()


def in_words(seconds: float) -> str:
    """Return a time in a suitable unit."""
    return f"{1000 * seconds:,.2f} ms" if seconds < 1 else f"{seconds:,.2f} s"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Time and memory of the loss, in chunks and from whole tables.")
    parser.add_argument("--formats", nargs="+", choices=list(FORMATS), default=list(FORMATS))
    parser.add_argument("--rows", nargs="+", type=int, default=[32, 128, 1024, 4096])
    parser.add_argument("--dimensions", type=int, default=768)
    parser.add_argument("--duplicates", choices=["mask", "keep"], default="mask")
    parser.add_argument("--rounds", type=int, default=2, help="processes per loss")
    options = parser.parse_args()
    print(f"{options.dimensions} dimensions, {torch.get_num_threads()} threads, duplicates: {options.duplicates}\n")
    heads = ("format", "rows", "ours", "it holds", "plain", "it holds", "plain / ours")
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    spawn = multiprocessing.get_context("spawn")
    for name in options.formats:
        for rows in options.rows:
            queries, candidates = (2 * rows, 2 * rows) if name == "A" else (rows, rows * (len(FORMATS[name].roles) - 1))
            fits = TABLES * 4 * queries * candidates < 0.7 * psutil.virtual_memory().available
            steps = max(1, 2**24 // (queries * candidates)) if rows > 256 else 300
            results: dict[type[CombinedLoss], list[tuple[float, int]]] = {}
            for _ in range(options.rounds):
                for loss_class in (CombinedLoss, PlainLoss) if fits else (CombinedLoss,):
                    with ProcessPoolExecutor(1, spawn) as process:
                        task = (loss_class, name, rows, options.dimensions, options.duplicates, steps)
                        results.setdefault(loss_class, []).append(process.submit(measure, *task).result())
            seconds = {loss_class: min(second for second, _ in values) for loss_class, values in results.items()}
            memory = {loss_class: max(size for _, size in values) / GIB for loss_class, values in results.items()}
            cells = [name, f"{rows:,}", in_words(seconds[CombinedLoss]), f"{memory[CombinedLoss]:.2f} GiB"]
            if fits:
                ratio = seconds[PlainLoss] / seconds[CombinedLoss]
                cells += [in_words(seconds[PlainLoss]), f"{memory[PlainLoss]:.2f} GiB", f"{ratio:.2f}"]
            print(f"| {' | '.join(cells + ['-'] * (len(heads) - len(cells)))} |", flush=True)


if __name__ == "__main__":
    main()
