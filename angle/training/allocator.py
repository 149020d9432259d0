"""The C library's memory, which training frees and asks for again in every step."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch

#: Options of glibc's mallopt (malloc.h): bytes that may lie free at the heap's end; bytes from which on a block is the
#: system's own mapping, which is given back when it is freed; how many blocks may be.
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
WHILE_KEPT = {TRIM_THRESHOLD: -1, MMAP_MAX: 0}
#: glibc's own, once it has adapted to blocks as large as it adapts to; it does so no more after a call of mallopt.
AFTERWARDS = {TRIM_THRESHOLD: 64 * 2**20, MMAP_THRESHOLD: 32 * 2**20, MMAP_MAX: 65536}


@contextmanager
def freed_memory_kept(device: torch.device) -> Iterator[None]:
    """Keep memory that is freed for what comes next, and give it back to the system at the end: on CPUs.

    Without this, glibc gives back large tensors, such as the dense gradient of word embeddings, and the system has to
    map and clear their pages again one step later. Other C libraries are left as they are.
    """
    if device.type != "cpu" or platform.libc_ver()[0] != "glibc":
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
