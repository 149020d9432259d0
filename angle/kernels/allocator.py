"""The C library's memory, which training frees and requests again in every step."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch

#: Options of glibc's mallopt (malloc.h): how many bytes may stay free at the top of the heap; the size in bytes from
#: which a block gets its own mmap, which is returned to the system when freed; how many such blocks there may be.
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
WHILE_KEPT = {TRIM_THRESHOLD: -1, MMAP_MAX: 0}
#: glibc's own values once its dynamic thresholds have reached their maximum; a call to mallopt stops the adaptation.
AFTERWARDS = {TRIM_THRESHOLD: 64 * 2**20, MMAP_THRESHOLD: 32 * 2**20, MMAP_MAX: 65536}


@contextmanager
def keep_freed_memory(device: torch.device) -> Iterator[None]:
    """On CPUs, keep freed memory for reuse, and return it to the system at the end.

    Without this, glibc returns large tensors, such as the dense gradient of word embeddings, and the system has to map
    and clear their pages again one step later. Other C libraries are left as they are.
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
