"""The folder that embeddings are written into: block by block, each of them durable, until all are there."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from angle.errors import ConfigError, DiskError
from angle.files import locked_folder, make_folder, remove, sync, write_durably

#: What is written in the end, by its format, and what says how it was made.
EMBEDDINGS_FILES = {"npy": "embeddings.npy", "parquet": "embeddings.parquet"}
RECORD_FILE = "embeddings.json"
#: Until then: a folder with the matrix, a byte for each of its blocks, and what they are.
PARTIAL, MATRIX_FILE, DONE_FILE, PARTIAL_RECORD_FILE = "partial", "embeddings.npy", "done", "record.json"

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class EmbeddingFolder:
    """A folder for the embeddings of one file or more."""

    path: Path

    @property
    def partial(self) -> Path:
        """The folder of what is not complete."""
        return self.path / PARTIAL

    def check_unfinished(self) -> None:
        """Raise ConfigError if there can be no embeddings in the folder, or are already."""
        existing = next((path for path in (self.path, *self.path.parents) if path.exists()), self.path)
        if existing.is_file():
            raise ConfigError(f"output_dir={self.path} cannot be a folder: {existing} is a file; give a new folder.")
        if any((self.path / name).exists() for name in EMBEDDINGS_FILES.values()):
            remove(self.partial)  # which a crash at the very end left
            raise ConfigError(f"output_dir={self.path} holds embeddings already; give a new folder.")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other commands out of the folder; a process that dies leaves no lock.

        Raises:
            ConfigError: it cannot be written to, or another command works in it.

        """
        with locked_folder(self.path, "output_dir", "another command embeds"):
            self.check_unfinished()
            yield

    def partial_record(self) -> dict[str, Any] | None:
        """Return what is known of the embeddings that are being made; None if there are none.

        Raises:
            ConfigError: it cannot be read.

        """
        path = self.partial / PARTIAL_RECORD_FILE
        if not path.is_file():
            return None
        try:
            record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            raise ConfigError(
                f"{path} is not as it was written: delete {self.partial}, or give a new folder."
            ) from None
        return record

    def create(self, record: dict[str, Any], matrix: PartialMatrix) -> None:
        """Make room for embeddings; the record comes last, and makes it valid."""
        remove(self.partial)
        make_folder(self.partial)
        matrix.create()
        write_durably(self.partial / PARTIAL_RECORD_FILE, json.dumps(record, indent=2) + "\n")

    def finish(self, record: dict[str, Any], target: Path, place: Callable[[Path], object]) -> None:
        """Put the embeddings in place, whole, with what says how they were made.

        Args:
            record: what is written beside them.
            target: the path of the embeddings.
            place: puts them there; a crash leaves nothing there, or all.

        """
        write_durably(self.path / RECORD_FILE, json.dumps(record, indent=2) + "\n")
        place(target)
        sync(self.path)
        remove(self.partial)


def check_space(folder: Path, needed: int) -> None:
    """Raise DiskError if a folder's disk has less than `needed` bytes left."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DiskError(
            f"output_dir={folder} is on a disk with {free / 1e9:,.1f} GB left, but the embeddings take "
            f"{needed / 1e9:,.1f} GB more: free disk space, give another folder, or write less by dtype=float16 or "
            f"model.dimensions."
        )


@dataclass(frozen=True)
class PartialMatrix:
    """A matrix on the disk whose blocks are written in any order, by any process, and are there once that is done."""

    folder: Path
    first_rows: npt.NDArray[np.int64]
    """(B + 1,): the first row of each block, and the number of rows."""
    dimensions: int
    dtype: str

    @property
    def path(self) -> Path:
        """The file, which is an .npy file of full size from the beginning."""
        return self.folder / MATRIX_FILE

    @property
    def nbytes(self) -> int:
        """Its size, but for a header."""
        return self._offset(-1)

    def _offset(self, block: int) -> int:
        return int(self.first_rows[block]) * self.dimensions * np.dtype(self.dtype).itemsize

    def create(self) -> None:
        """Write the files, with no block done."""
        shape = int(self.first_rows[-1]), self.dimensions
        np.lib.format.open_memmap(self.path, "w+", np.dtype(self.dtype), shape)
        sync(self.path)
        write_durably(self.folder / DONE_FILE, bytes(len(self.first_rows) - 1))

    def done(self) -> npt.NDArray[np.bool_]:
        """Return (B,): which blocks are there."""
        return np.fromfile(self.folder / DONE_FILE, np.bool_)

    def read(self) -> Array:
        """Return the matrix, memory-mapped."""
        matrix: Array = np.load(self.path, mmap_mode="r")
        return matrix

    def write(self, block: int, rows: Array) -> None:
        """Write a block, and then that it is done; both are on the disk when this returns."""
        # Not by a memory map, which kills the process if the disk is full.
        header = self.path.stat().st_size - self.nbytes
        _write_at(self.path, header + self._offset(block), np.ascontiguousarray(rows).tobytes())
        _write_at(self.folder / DONE_FILE, block, b"\1")


def _write_at(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b", buffering=0) as file:
        file.seek(offset)
        view = memoryview(content)
        while view:  # an unbuffered file may take less than all
            view = view[file.write(view) :]
        os.fsync(file.fileno())
