"""Cache on disk for arrays that are slow to compute, each named after everything that determines its contents.

Processes share it: a file appears whole or not at all, and carries a checksum. $ANGLE_CACHE_GB bounds its size.
"""

from __future__ import annotations

import math
import os
import struct
import time
import uuid
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from angle.errors import ConfigError
from angle.files import sync

Array = npt.NDArray[Any]

#: Size of the cache unless $ANGLE_CACHE_GB gives another.
DEFAULT_GB = 50.0
#: What may be deleted to make room. (The timings of kernels are small, and a run's choice rests on them.)
BOUNDED_FOLDERS = ("tokens", "teachers")
#: Seconds after which a file that is still being written belongs to a process that was killed.
ABANDONED_AFTER = 24 * 3600
_CHECKSUM = struct.Struct("<I")


def cache_folder(name: str) -> Path:
    """Return the folder of that name in the cache, which is $ANGLE_CACHE or else ~/.cache/angle."""
    return Path(os.environ.get("ANGLE_CACHE") or Path.home() / ".cache" / "angle").expanduser() / name


def load_array(path: Path) -> Array | None:
    """Return a cached array, memory-mapped; None if it is missing or damaged."""
    try:
        array: Array = np.load(path, mmap_mode="r")
        content = np.memmap(path, np.uint8, "r")
        if _CHECKSUM.unpack(content[-_CHECKSUM.size :].data)[0] != _checksum(path, content[: -_CHECKSUM.size]):
            return None
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))  # the time of access: it is in use
    except PermissionError:  # of another user's file the time cannot be set
        return array
    except Exception:  # numpy raises a different error for each way in which a file can be damaged or missing
        return None
    return array


def save_array(path: Path, array: Array, *, replace: bool = True) -> None:
    """Save an array atomically; if the disk is full or read-only, skip it, and it is computed again next time.

    The files and folders have default permissions, so that others can read them. If the cache gets too large, what was
    not used for longest is deleted.

    Args:
        path: the file.
        array: what `load_array` will return.
        replace: whether to replace an existing file. Of a measurement, unlike of a computation, two processes write
            different results, and the first counts.

    Raises:
        ConfigError: $ANGLE_CACHE_GB is no size.

    """
    limit = _limit()
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
        try:
            with scratch.open("xb") as file:
                np.save(file, array)
                file.flush()
                file.write(_CHECKSUM.pack(_checksum(path, np.memmap(scratch, np.uint8, "r"))))
            sync(scratch)
            if replace or load_array(path) is None:
                scratch.replace(path)
                sync(path.parent)
        finally:
            scratch.unlink(missing_ok=True)
        _trim(limit)


def _checksum(path: Path, content: npt.NDArray[np.uint8]) -> int:
    """Return the checksum of a file's content under its name: the file of another key has another one."""
    return zlib.crc32(content.data, zlib.crc32(f"{path.parent.name}/{path.name}".encode()))


def _limit() -> float:
    """Return the size of the cache in bytes."""
    value = os.environ.get("ANGLE_CACHE_GB") or str(DEFAULT_GB)
    try:
        gigabytes = float(value)
    except ValueError:
        gigabytes = math.nan
    if not gigabytes >= 0:
        raise ConfigError(
            f"ANGLE_CACHE_GB={value} is no size: give the gigabytes that the cache may take, or 0 for none."
        )
    return gigabytes * 1e9


def _trim(limit: float) -> None:
    """Delete the files that were not used for longest, until the cache is no larger than `limit` bytes."""
    files = []
    for path in (path for name in BOUNDED_FOLDERS for path in cache_folder(name).rglob("*.npy*")):
        with suppress(OSError):  # another process has just deleted it
            status = path.stat()
            if path.suffix == ".npy":
                files.append((status.st_atime_ns, status.st_size, path))
            elif time.time() - status.st_mtime > ABANDONED_AFTER:
                path.unlink()
    excess = sum(size for _, size, _ in files) - limit
    for _, size, path in sorted(files):
        if excess <= 0:
            return
        with suppress(OSError):
            path.unlink()
            if path.parent.name not in BOUNDED_FOLDERS:
                path.parent.rmdir()  # once it is empty
        excess -= size
