"""Memory of freed tensors: kept while training, the system's again afterwards."""

from __future__ import annotations

import platform

import psutil
import pytest
import torch

from angle.kernels.allocator import keep_freed_memory

MIB = 2**20


def resident_after(sizes: list[int]) -> int:
    """Return how many bytes more are resident once tensors of so many MiB were filled and freed."""
    before = psutil.Process().memory_info().rss
    for size in sizes:
        torch.ones(size * MIB, dtype=torch.uint8)
    return psutil.Process().memory_info().rss - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")
def test_freed_memory_is_kept_until_the_end() -> None:
    torch.ones(MIB)  # what the first tensor of a process loads
    assert resident_after([512]) < 8 * MIB
    before = psutil.Process().memory_info().rss
    with keep_freed_memory(torch.device("cpu")):
        assert resident_after([512]) > 448 * MIB
        assert resident_after([384]) < 8 * MIB  # the same memory once more
    assert psutil.Process().memory_info().rss - before < 8 * MIB
    assert resident_after([512]) < 8 * MIB


def test_a_gpu_changes_nothing() -> None:
    with keep_freed_memory(torch.device("cuda")):
        assert resident_after([512]) < 8 * MIB
