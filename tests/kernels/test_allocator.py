"""Memory of freed tensors: kept while training, the system's again afterwards."""

from __future__ import annotations

import platform

import psutil
import pytest
import torch
from torch import nn

from angle.kernels.allocator import MAX_THRESHOLD, install_allocator, keep_freed_memory

MIB = 2**20
only_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")


def resident_after(sizes: list[int]) -> int:
    """Return how many bytes more are resident once tensors of so many MiB were filled and freed."""
    before = psutil.Process().memory_info().rss
    for size in sizes:
        torch.ones(size * MIB, dtype=torch.uint8)
    return psutil.Process().memory_info().rss - before


def table(rows: int, device: str = "cpu") -> nn.Module:
    """Return an embedding table with rows of 4 KiB."""
    return nn.Embedding(rows, 1024, device=device)


LARGE = MAX_THRESHOLD // 4096 + 1


@only_glibc
def test_freed_memory_is_kept_until_the_end() -> None:
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


@pytest.mark.parametrize(
    ("model", "enabled"),
    [
        (table(LARGE - 1), True),
        (table(LARGE).requires_grad_(False), True),
        (table(LARGE, "meta"), True),
        (table(LARGE), False),
    ],
    ids=["small", "frozen", "another device", "disabled"],
)
def test_nothing_changes_without_a_large_gradient_on_the_cpu(model: nn.Module, enabled: bool) -> None:
    with keep_freed_memory(model, enabled=enabled):
        assert resident_after([512]) < 8 * MIB
