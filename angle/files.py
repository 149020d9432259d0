"""Files that survive a crash, and how to write their paths."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def write_durably(path: Path, text: str) -> None:
    """Write a file so that a reader, or a crash, finds either the old text or the new one."""
    scratch = path.with_name(f".{path.name}.new")
    scratch.write_text(text, encoding="utf-8")
    sync(scratch)
    os.replace(scratch, path)


def sync(path: Path) -> None:
    """Wait until a file or a folder's list of names is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def relative_to_here(path: Path) -> str:
    """Return a path as short as possible for typing in the current folder."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
