"""What passes from stage to stage: rows -> texts -> tokens -> embeddings -> loss terms.

Legend for shapes, here and everywhere: B rows, R roles (texts) in a row, N distinct texts, L tokens, T tokens of
all texts, D dimensions, W processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def to_device(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    """Return an array as a tensor on a device, without waiting for what the device is busy with.

    CUDA copies from pinned memory alone while the host goes on; torch keeps that memory until the copy is done.
    """
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


@dataclass(frozen=True)
class DataFormat:
    """The shape of a row: which texts it has, and whether a label."""

    name: str
    roles: tuple[str, ...]
    labelled: bool

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns a table of this format has."""
        return (*self.roles, "label") if self.labelled else self.roles


FORMATS = {
    "A": DataFormat("A", ("text1", "text2"), labelled=True),
    "B": DataFormat("B", ("text", "positive", "negative"), labelled=False),
    "C": DataFormat("C", ("text", "positive"), labelled=False),
}


@dataclass(frozen=True)
class Tokens:
    """Token ids of N texts, one text after the other and without padding."""

    ids: npt.NDArray[np.int32]
    """(T,)"""
    offsets: npt.NDArray[np.int64]
    """(N + 1,): text n is `ids[offsets[n]:offsets[n + 1]]`."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """(N,): tokens of each text."""
        return np.diff(self.offsets)

    def take(self, texts: npt.NDArray[np.integer]) -> Tokens:
        """Return the given texts, in that order."""
        offsets = np.zeros(len(texts) + 1, dtype=np.int64)
        np.cumsum(self.lengths[texts], out=offsets[1:])
        where = np.arange(offsets[-1]) + np.repeat(self.offsets[texts] - offsets[:-1], self.lengths[texts])
        return Tokens(np.asarray(self.ids[where]), offsets)

    def slices(self, size: int) -> Iterator[npt.NDArray[np.int64]]:
        """Yield the numbers of all texts in groups of `size`, longest texts first, so that a group pads little."""
        order = np.argsort(-self.lengths, kind="stable")
        for start in range(0, len(order), size):
            yield order[start : start + size]


@dataclass(frozen=True)
class Structure:
    """Which text plays which role in which row, and the rows' labels: all an objective knows of a batch."""

    format: DataFormat
    index: Tensor
    """(B, R) int64: the embedding of each row's each role."""
    text_ids: Tensor
    """(B, R) int64: equal numbers are equal texts, on every process."""
    labels: Tensor | None
    """(B,) float32, for labelled formats."""


@dataclass(frozen=True)
class Batch:
    """One process's share of one evaluation of the objective."""

    tokens: Tokens
    """The N distinct texts of its rows."""
    structure: Structure
    texts: npt.NDArray[np.int64]
    """(N,): their numbers in the training data."""
    rows: npt.NDArray[np.int64]
    """(B,): numbers of the rows in the training data, for messages."""

    def tensors(self, device: torch.device) -> tuple[Tensor, npt.NDArray[np.int64], Structure]:
        """Return token ids (T,) and the structure on `device`, and the texts' lengths (N,).

        Lengths are no tensor: the encoder plans its work by them, which must not wait for the device, and a wrapper
        such as DDP would move a tensor there.
        """
        structure = self.structure
        moved = Structure(
            structure.format,
            structure.index.to(device, non_blocking=True),
            structure.text_ids.to(device, non_blocking=True),
            None if structure.labels is None else structure.labels.to(device, non_blocking=True),
        )
        ids = torch.from_numpy(self.tokens.ids.astype(np.int64))
        return ids.to(device, non_blocking=True), self.tokens.lengths, moved
