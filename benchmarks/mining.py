"""Exact search among a million passages on the CPU, in bounded memory: python -m benchmarks.mining.

Random unit vectors stand for the embeddings of queries and passages: what is searched does not change how long it
takes. They lie in a file, of which one block is read at a time, as the miner encodes them.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from angle.evaluation.search import search
from angle.mining.mine import PASSAGES_AT_ONCE


def write_vectors(path: Path, count: int, width: int) -> None:
    """Write random unit vectors (count, width) into a file."""
    generator = np.random.default_rng(0)
    with path.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (count, width)}
        np.lib.format.write_array_header_1_0(file, header)
        for first in range(0, count, PASSAGES_AT_ONCE):
            block = generator.standard_normal((min(PASSAGES_AT_ONCE, count - first), width), np.float32)
            (block / np.linalg.norm(block, axis=1, keepdims=True)).tofile(file)


def blocks(path: Path, count: int) -> Iterator[Tensor]:
    """Yield copies of the vectors in a file, block by block; none of it stays mapped."""
    for first in range(0, count, PASSAGES_AT_ONCE):
        yield torch.from_numpy(np.array(np.load(path, mmap_mode="r")[first : first + PASSAGES_AT_ONCE]))


def peak() -> float:
    """Return the largest resident memory of this process so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    """Measure, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--passages", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--neighbours", type=int, default=31)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "passages.npy")
        write_vectors(path, arguments.passages, arguments.width)
        queries = torch.randn(arguments.queries, arguments.width, generator=torch.Generator().manual_seed(1))
        before, began = peak(), time.perf_counter()
        found = search(queries, blocks(path, arguments.passages), arguments.neighbours)
        seconds = time.perf_counter() - began
    print(
        f"{arguments.queries:,} queries, {arguments.passages:,} passages of {arguments.width} dimensions, "
        f"{arguments.neighbours} neighbours of each, {torch.get_num_threads()} threads\n"
        f"{seconds:.1f} s, {peak():.2f} GiB at most ({before:.2f} before); mean cosine of the nearest "
        f"{float(found.cosines[:, 0].mean()):.4f}"
    )


if __name__ == "__main__":
    main()
