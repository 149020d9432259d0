"""Rows checked, their distinct texts tokenised once, and which row uses which text."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from angle.config import SourceConfig, label_name
from angle.data import formats, sources
from angle.data.sources import Row, Table
from angle.errors import DataError
from angle.structures import DataFormat, Tokens

Ints = npt.NDArray[np.int64]


class Tokenizer(Protocol):
    """What turns texts into tokens; see `angle.modeling.tokenizer.TextTokenizer`."""

    @property
    def fingerprint(self) -> str:
        """A hash of everything that decides the tokens of a text."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The further columns that the template uses."""

    def __call__(self, texts: Sequence[str], extras: Sequence[Mapping[str, str]] | None = None) -> Tokens:
        """Return the tokens of texts."""


@dataclass(frozen=True)
class Corpus:
    """R rows over N distinct texts."""

    format: DataFormat
    tokens: Tokens
    """The N distinct texts."""
    first: Ints
    """(R, roles): where in `choices` the texts of a cell begin."""
    count: Ints
    """(R, roles): how many texts a cell holds; one is drawn each time."""
    choices: Ints
    """(C,): numbers of texts."""
    labels: npt.NDArray[np.float32] | None
    """(R,)"""
    origins: tuple[str, ...]
    """The files or data sets the rows come from, with what their numbers count."""
    origin: npt.NDArray[np.int32]
    """(R,): index into `origins`."""
    numbers: Ints
    """(R,): row or line number there."""
    dropped: int
    """Rows that `label_map` told to drop."""
    fingerprint: str
    """Hash of texts, structure and labels, before tokenising."""

    def __len__(self) -> int:
        return len(self.first)

    def describe(self, row: int) -> str:
        """Return where a row stands, for a message."""
        return f"{self.origins[self.origin[row]]} {self.numbers[row]}"

    def texts(self, rows: Ints, seed: int, epoch: int) -> Ints:
        """Return (B, roles): a text for each cell; where it holds several, drawn by (seed, epoch, row)."""
        first, count = self.first[rows], self.count[rows]
        if (count == 1).all():
            return self.choices[first]
        draws = np.stack([np.random.default_rng((seed, epoch, int(row))).random(first.shape[1]) for row in rows])
        return self.choices[first + (draws * count).astype(np.int64)]


class CorpusBuilder:
    """Takes rows one at a time, checks them, and remembers what is wrong until it is asked for the corpus."""

    def __init__(
        self, data_format: DataFormat, source: SourceConfig, role: str, extra_columns: tuple[str, ...]
    ) -> None:
        """Start empty; `role` (train, valid, ...) and `source` are for checks and messages."""
        self.format = data_format
        self.label_map = source.label_map
        self.role = role
        self.extra_columns = extra_columns
        self._texts: dict[tuple[str, ...], int] = {}
        self._choices: list[int] = []
        self._counts: list[int] = []
        self._labels: list[float] = []
        self._origins: dict[str, int] = {}
        self._origin: list[int] = []
        self._numbers: list[int] = []
        self._dropped = 0
        self._problems: dict[str, list[Any]] = {}

    def __len__(self) -> int:
        return len(self._numbers)

    def add(self, table: Table, number: int, row: Row) -> None:
        """Take a row; a row with a problem is counted and left out."""
        label = self._label(table, number, row) if self.format.labelled else 0.0
        if label is None:
            return
        cells = [self._cell(table, number, row, role) for role in self.format.roles]
        extras = [row.get(name) for name in self.extra_columns]
        for name, value in zip(self.extra_columns, extras, strict=True):
            if not isinstance(value, str):
                self._problem(table, number, name, f"is {_kind(value)}, but the template model.prompt uses it")
        if any(cell is None for cell in cells) or not all(isinstance(value, str) for value in extras):
            return
        for cell in cells:
            assert cell is not None
            for text in cell:
                self._choices.append(self._texts.setdefault((text, *map(str, extras)), len(self._texts)))
            self._counts.append(len(cell))
        self._labels.append(label)
        origin = f"{table.where} {table.unit}"
        self._origin.append(self._origins.setdefault(origin, len(self._origins)))
        self._numbers.append(number)

    def _cell(self, table: Table, number: int, row: Row, role: str) -> Sequence[str] | None:
        value = row.get(role)
        texts: list[Any] = value if isinstance(value, list) else [value]
        if not texts:
            self._problem(table, number, role, "is an empty list")
            return None
        for text in texts:
            if not isinstance(text, str) or not text.strip():
                self._problem(table, number, role, f"is {_kind(text)}")
                return None
        return texts

    def _label(self, table: Table, number: int, row: Row) -> float | None:
        value = row.get("label")
        if self.label_map:
            if label_name(value) not in self.label_map:
                known = ", ".join(self.label_map)
                self._problem(table, number, "label", f"is {value!r}, which label_map does not name (it names {known})")
                return None
            mapped = self.label_map[label_name(value)]
            if mapped is None:
                self._dropped += 1
            return mapped
        if value is None or (isinstance(value, str) and not value.strip()):
            self._problem(table, number, "label", f"is {_kind(value)}")
            return None
        try:
            if isinstance(value, bool):
                raise TypeError
            label = float(value)
        except (TypeError, ValueError):
            hint = f"; give numbers, or map names: 'data.{self.role}.label_map={{{value}: 1}}'"
            self._problem(table, number, "label", f"is {value!r}, no number", hint)
            return None
        if not math.isfinite(label):
            self._problem(table, number, "label", f"is {value}, no finite number")
            return None
        return label

    def _problem(self, table: Table, number: int, column: str, what: str, hint: str = "") -> None:
        # One kind of problem counts under one key, whatever the value: the first one is shown.
        kind = f"{table.where}/{column}/{what.split()[-1] if column != 'label' else 'label'}"
        entry = self._problems.setdefault(
            kind, [0, f"data.{self.role}: {table.where} {table.unit} {number}: {column} {what}", hint]
        )
        entry[0] += 1

    def check(self) -> None:
        """Raise DataError when rows had problems: the first one, and how many there are of its kind."""
        if self._problems:
            count, message, hint = next(iter(self._problems.values()))
            others = len(self._problems) - 1
            more = f", and {others} other kind{'s' if others > 1 else ''} of problem" if others else ""
            raise DataError(f"{message} ({count} such row{'s' if count > 1 else ''}{more}){hint}.")

    def build(self, tokenizer: Tokenizer, *, cache: bool = True) -> Corpus:
        """Return the corpus of all rows taken.

        Raises:
            DataError: rows with problems, or no rows.

        """
        self.check()
        if not self._numbers:
            dropped = f": label_map dropped all {self._dropped}" if self._dropped else ""
            raise DataError(f"data.{self.role} has no row to use{dropped}.")
        shape = (len(self._numbers), len(self.format.roles))
        count = np.array(self._counts, np.int64)
        choices = np.array(self._choices, np.int64)
        labels = np.array(self._labels, np.float32) if self.format.labelled else None
        digest = hashlib.sha256(self.format.name.encode())
        for key in self._texts:
            digest.update("\0".join(key).encode(errors="surrogatepass") + b"\1")
        texts_digest = digest.hexdigest()
        for array in (count, choices, labels):
            digest.update(b"" if array is None else array.tobytes())
        return Corpus(
            format=self.format,
            tokens=self._tokens(tokenizer, texts_digest, cache),
            first=(np.cumsum(count) - count).reshape(shape),
            count=count.reshape(shape),
            choices=choices,
            labels=labels,
            origins=tuple(self._origins),
            origin=np.array(self._origin, np.int32),
            numbers=np.array(self._numbers, np.int64),
            dropped=self._dropped,
            fingerprint=digest.hexdigest(),
        )

    def _tokens(self, tokenizer: Tokenizer, texts_digest: str, cache: bool) -> Tokens:
        def tokenize() -> Tokens:
            extras = [dict(zip(self.extra_columns, key[1:], strict=True)) for key in self._texts]
            try:
                return tokenizer([key[0] for key in self._texts], extras if self.extra_columns else None)
            except ValueError as error:
                raise DataError(f"data.{self.role}: {error}.") from None

        if not cache:
            return tokenize()
        key = hashlib.sha256(f"{tokenizer.fingerprint}/{texts_digest}".encode()).hexdigest()
        return cached_tokens(cache_folder() / key, tokenize)


def _kind(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, str):
        return "empty"
    return f"no text but {value!r}"


def cache_folder() -> Path:
    """Return where tokens are kept: $ANGLE_CACHE, or ~/.cache/angle/tokens."""
    return Path(os.environ.get("ANGLE_CACHE") or Path.home() / ".cache" / "angle" / "tokens")


def cached_tokens(folder: Path, tokenize: Any) -> Tokens:
    """Return the tokens kept in `folder`, memory-mapped; if there are none, make and keep them."""
    if not folder.is_dir():
        tokens: Tokens = tokenize()
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            scratch = Path(tempfile.mkdtemp(dir=folder.parent))
            np.save(scratch / "ids.npy", tokens.ids)
            np.save(scratch / "offsets.npy", tokens.offsets)
            try:
                scratch.rename(folder)
            except OSError:  # another process kept the same tokens first
                shutil.rmtree(scratch)
        except OSError:  # a full or read-only disk must not stop a run: only the next start is slower
            pass
        return tokens
    return Tokens(np.load(folder / "ids.npy", mmap_mode="r"), np.load(folder / "offsets.npy", mmap_mode="r"))


def load_corpus(source: SourceConfig, role: str, tokenizer: Tokenizer, data_format: str = "auto") -> Corpus:
    """Read, check and tokenise all rows of a source.

    Args:
        source: what to read.
        role: train, valid, valid_sts or test.
        tokenizer: turns texts into tokens.
        data_format: A, B, C or auto.

    Raises:
        DataError: anything that is wrong with the data.

    """
    tables = sources.open_tables(source, role, data_format)
    builder = CorpusBuilder(common_format(tables, data_format, role), source, role, tokenizer.columns)
    for table in tables:
        check_extra_columns(table, tokenizer.columns, role)
        for number, row in table.rows:
            builder.add(table, number, row)
    return builder.build(tokenizer)


def common_format(tables: Iterable[Table], wanted: str, role: str) -> DataFormat:
    """Return the format that all tables share, `wanted` unless that is "auto"."""
    found: DataFormat | None = None
    for table in tables:
        found = formats.choose(table.columns, found.name if found else wanted, role, table.where)
    assert found is not None
    return found


def check_extra_columns(table: Table, columns: tuple[str, ...], role: str) -> None:
    """Raise DataError when the template uses a column that the table does not have."""
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise DataError(
            f"data.{role}: the template model.prompt uses {{{missing[0]}}}, but {table.where} has the "
            f"columns {', '.join(table.columns)}."
        )
