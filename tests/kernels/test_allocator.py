"""Memory of freed tensors: kept while training, the system's again afterwards."""

from __future__ import annotations

import platform
from pathlib import Path

import fork_server
import kept_memory
import pytest
from kept_memory import LARGE, MIB, resident_after, table
from torch import nn

from angle.kernels.allocator import keep_freed_memory

only_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")


@only_glibc
def test_freed_memory_is_kept_until_the_end(tmp_path: Path) -> None:
    """In a process of its own: what others have on the heap would keep glibc from shrinking it."""
    done = fork_server.run([kept_memory.__file__], tmp_path, fork_server.environment(), timeout=300)
    assert done.returncode == 0, done.stderr


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
