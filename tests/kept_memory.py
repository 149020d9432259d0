"""What becomes of the memory of freed tensors, in a process whose heap holds nothing of others."""

from __future__ import annotations

import psutil
import torch
from torch import nn

from angle.kernels.allocator import MAX_THRESHOLD, install_allocator, keep_freed_memory

MIB = 2**20
LARGE = MAX_THRESHOLD // 4096 + 1


def resident_after(sizes: list[int]) -> int:
    """Return how many bytes more are resident once tensors of so many MiB were filled and freed."""
    before = psutil.Process().memory_info().rss
    for size in sizes:
        torch.ones(size * MIB, dtype=torch.uint8)
    return psutil.Process().memory_info().rss - before


def table(rows: int, device: str = "cpu") -> nn.Module:
    """Return an embedding table with rows of 4 KiB."""
    return nn.Embedding(rows, 1024, device=device)


def main() -> None:
    """Assert that it is kept until the end, and the system's again afterwards."""
    assert install_allocator(table(LARGE)) is None
    torch.ones(MIB)  # what the first tensor of a process loads
    assert resident_after([512]) < 8 * MIB
    model = table(LARGE)
    before = psutil.Process().memory_info().rss
    with keep_freed_memory(model):
        assert resident_after([512]) > 448 * MIB
        assert resident_after([384]) < 8 * MIB  # the same memory once more
    assert psutil.Process().memory_info().rss - before < 8 * MIB
    assert resident_after([512]) < 8 * MIB


if __name__ == "__main__":
    main()
