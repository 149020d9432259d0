"""The C library's memory, which training frees and requests again in every step."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from angle.kernels.kernel import Kernel

#: Options of glibc's mallopt (malloc.h): how many bytes may stay free at the top of the heap; the size in bytes from
#: which a block gets its own mmap, which is returned to the system when freed; how many such blocks there may be.
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
#: glibc raises its thresholds to at most this number of bytes by itself; smaller blocks are kept anyway.
MAX_THRESHOLD = 32 * 2**20
WHILE_KEPT = {TRIM_THRESHOLD: -1, MMAP_MAX: 0}
#: glibc's own values once its dynamic thresholds have reached their maximum; a call to mallopt stops the adaptation.
AFTERWARDS = {TRIM_THRESHOLD: 2 * MAX_THRESHOLD, MMAP_THRESHOLD: MAX_THRESHOLD, MMAP_MAX: 65536}


def install_allocator(model: nn.Module) -> str | None:
    """Return None if `keep_freed_memory` can be used with any model here, otherwise why not."""
    return None if platform.libc_ver()[0] == "glibc" else "the C library is not glibc"


@contextmanager
def keep_freed_memory(model: nn.Module, *, enabled: bool = True) -> Iterator[None]:
    """Keep freed memory for reuse while a model is trained on the CPU, and return it to the system at the end.

    Without this, glibc returns the largest tensors, such as the dense gradient of word embeddings, and the system has
    to map and clear their pages again one step later. Where no gradient is that large, nothing is changed.
    """
    large = (p.requires_grad and p.nbytes > MAX_THRESHOLD and p.device.type == "cpu" for p in model.parameters())
    if not enabled or install_allocator(model) is not None or not any(large):
        yield
        return
    libc = ctypes.CDLL(None)
    for option, value in WHILE_KEPT.items():
        libc.mallopt(option, value)
    try:
        yield
    finally:
        for option, value in AFTERWARDS.items():
            libc.mallopt(option, value)
        libc.malloc_trim(0)


KERNEL = Kernel(
    "allocator",
    "Keeps freed memory for reuse while a model is trained that has a gradient of over 32 MiB.",
    ("cpu",),
    "the process, with glibc",
    install_allocator,
)
