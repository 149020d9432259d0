"""Where rows come from: files, data sets on disk or on the hub, and the built-in sample."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from angle.config import SourceConfig
from angle.data import sample
from angle.data.roles import DEFAULT_SPLITS, default_split, setting
from angle.errors import DataError, first_line
from angle.quiet import quiet_datasets

SAMPLE = "sample"
FILE_ENDINGS = (".json", ".jsonl", ".csv", ".tsv", ".parquet")
#: Rows that are read from a data set at a time: enough to make the overhead of a batch negligible.
ARROW_ROWS = 1000

#: Leading rows of a streamed file that determine its columns: a JSON object may leave some out.
LOOKED_AT = 1000

#: Bytes of a streamed file's beginning and end that tell it from others.
HASHED = 2**20

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """Rows of one source, read on demand, and how to refer to them."""

    where: str
    """The file, folder or hub name."""
    columns: tuple[str, ...]
    """Column names after renaming."""
    rows: Iterable[tuple[int, Row]]
    """Number of the row or line, counting from 1, and the row."""
    unit: str = "row"
    """What the numbers count: "row" or "line"."""


def open_tables(source: SourceConfig, role: str, data_format: str = "auto", *, streaming: bool = False) -> list[Table]:
    """Return the tables of a source in the order they are named, with columns renamed.

    Args:
        source: names at least one table.
        role: one of `angle.data.roles`, for messages and for the default split.
        data_format: which format the built-in sample has ("auto": A).
        streaming: read files and hub data as a stream instead of all at once. An error in a row is then raised when
            that row is reached, except in the first rows of a file, which are read to find its columns.

    Raises:
        DataError: a source with nothing readable, or columns to rename that it does not have.

    """
    split = source.split or default_split(role)
    tables = []
    for name in source.names():
        if name == SAMPLE:
            table = _sample_table(split, data_format)
        elif Path(name).exists() or name.startswith((".", "/", "~")) or _ending(name) is not None:
            table = _local_table(Path(name).expanduser(), split, role, streaming)
        else:
            table = _hub_table(name, source, split, role, streaming)
        tables.append(_renamed(table, source.columns, role))
    return tables


def fingerprint_of_files(source: SourceConfig) -> str | None:
    """Return a hash of the sizes, beginnings and ends of a source's files; None if there are others than files.

    Files that are streamed may be too large to be hashed as a whole.
    """
    digest = hashlib.sha256()
    for name in source.names():
        path = Path(name).expanduser()
        if not path.is_file():
            return None
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            digest.update(str(size).encode())
            for place in (0, max(0, size - HASHED)):
                file.seek(place)
                digest.update(file.read(HASHED))
    return digest.hexdigest()


def _ending(name: str) -> str | None:
    plain = name.lower().removesuffix(".gz")
    return next((ending for ending in FILE_ENDINGS if plain.endswith(ending)), None)


def _sample_table(split: str, data_format: str) -> Table:
    if split not in sample.SPLITS:
        raise DataError(f"The built-in sample has no split {split}: choose one of {', '.join(sample.SPLITS)}.")
    columns = sample.columns("A" if data_format == "auto" else data_format, split)
    names = tuple(columns)
    rows = [dict(zip(names, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return Table(f"{SAMPLE} ({split})", names, list(enumerate(rows, 1)))


def _local_table(path: Path, split: str, role: str, streaming: bool) -> Table:
    if not path.exists():
        raise DataError(f"{setting(role)}: {path} does not exist; the folder you are in is {Path.cwd()}.")
    if path.is_dir():
        return _disk_table(path, split, role)
    ending = _ending(path.name)
    if ending is None:
        raise DataError(
            f"{setting(role)}: {path} cannot be read: a file must end in {', '.join(FILE_ENDINGS)}, all but "
            f".parquet also with .gz behind."
        )
    if path.stat().st_size == 0:
        raise DataError(f"{setting(role)}: {path} is empty.")
    if ending == ".parquet":
        return _parquet_table(path, role)
    read, unit = _csv_rows, "row"
    if ending in (".json", ".jsonl"):
        read, unit = (_json_list, "row") if _holds_a_list(path, role) else (_json_lines, "line")
    rows: Iterable[tuple[int, Row]] = _FileRows(path, role, read)
    if not streaming or read is _json_list:  # a JSON list can only be parsed whole, so keep it
        rows = list(rows)
    looked_at = islice(rows, LOOKED_AT) if streaming else rows
    columns = dict.fromkeys(name for _, row in looked_at for name in row)
    if not columns:
        raise DataError(f"{setting(role)}: {path} is empty: it has no row.")
    return Table(str(path), tuple(columns), rows, unit)


@dataclass(frozen=True)
class _FileRows:
    """Numbered rows of a text file, which each iteration opens anew and reads only as far as needed."""

    path: Path
    role: str
    read: Callable[[Path, str], Iterator[tuple[int, Row]]]

    def __iter__(self) -> Iterator[tuple[int, Row]]:
        with _unreadable_is_said(self.path, self.role):
            yield from self.read(self.path, self.role)


@contextmanager
def _unreadable_is_said(path: Path, role: str) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        raise DataError(
            f"{setting(role)}: {path} is not written in UTF-8 ({error.reason}: {error.object[error.start]:#04x}); "
            f"save it as UTF-8."
        ) from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{setting(role)}: {path} is no whole gzip file: {str(error).rstrip('.')}.") from None


def _open_text(path: Path) -> Any:
    opener = gzip.open if path.suffix.lower() == ".gz" else open
    return opener(path, "rt", encoding="utf-8-sig", newline="")


def _holds_a_list(path: Path, role: str) -> bool:
    """Return whether a JSON file is one list of objects rather than one object per line."""
    with _unreadable_is_said(path, role), _open_text(path) as file:
        return bool(file.read(1024).lstrip()[:1] == "[")


def _json_list(path: Path, role: str) -> Iterator[tuple[int, Row]]:
    with _open_text(path) as file:
        items = _parse(file.read(), 1, path, role)
    for number, item in enumerate(items, 1):
        yield number, _object(item, f"row {number}", path, role)


def _json_lines(path: Path, role: str) -> Iterator[tuple[int, Row]]:
    with _open_text(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                item = _parse(line.rstrip("\r\n"), number, path, role)
                yield number, _object(item, f"line {number}", path, role)


def _object(item: Any, place: str, path: Path, role: str) -> Row:
    if not isinstance(item, dict):
        raise DataError(
            f"{setting(role)}: {path} {place} is no JSON object with a name for each column: {json.dumps(item)[:60]}"
        )
    return item


def _parse(text: str, first_line: int, path: Path, role: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise DataError(
            f"{setting(role)}: {path} line {line} is no valid JSON: {error.msg} (column {error.colno})."
        ) from None


def _csv_rows(path: Path, role: str) -> Iterator[tuple[int, Row]]:
    """Yield the rows below a header. Cells stay text as written: an NA or null in a sentence is a word."""
    csv.field_size_limit(2**31 - 1)  # a cell may be a document
    with _open_text(path) as file:
        # A tab-separated file is usually written without quoting, so a quotation mark is a character there.
        tabs = ".tsv" in path.name.lower()
        reader = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if tabs else csv.reader(file)
        header = next(reader, [])
        twice = [name for name in header if header.count(name) > 1]
        if twice:
            raise DataError(f"{setting(role)}: {path} has two columns named {twice[0]}: rename one in its header.")
        for number, cells in enumerate((cells for cells in reader if cells), 1):
            if len(cells) != len(header):
                raise DataError(
                    f"{setting(role)}: {path} row {number} has {len(cells)} cells, but its header names "
                    f"{len(header)} columns: {', '.join(header)}."
                )
            yield number, dict(zip(header, cells, strict=True))


def _parquet_table(path: Path, role: str) -> Table:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    try:
        file = parquet.ParquetFile(path)
    except (arrow.ArrowInvalid, OSError) as error:
        raise DataError(f"{setting(role)}: {path} is no readable parquet file: {first_line(error)}.") from None
    if file.metadata.num_rows == 0:
        raise DataError(f"{setting(role)}: {path} is empty: it has no row.")
    rows = (row for batch in file.iter_batches() for row in batch.to_pylist())
    return Table(str(path), tuple(file.schema_arrow.names), enumerate(rows, 1))


def _disk_table(path: Path, split: str, role: str) -> Table:
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except (FileNotFoundError, ValueError) as error:
        raise DataError(
            f"{setting(role)}: {path} is no folder that datasets' save_to_disk wrote: {first_line(error)}."
        ) from None
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            first = next(iter(loaded))
            typed = f"{setting(role, 'split')}={first}" if role in DEFAULT_SPLITS else f"tasks=[{path / first}]"
            raise DataError(f"{setting(role)}: {path} has no split {split}; it has {', '.join(loaded)}: type {typed}")
        loaded = loaded[split]
    return _dataset_table(loaded, str(path), role)


def _hub_table(name: str, source: SourceConfig, split: str, role: str, streaming: bool) -> Table:
    import datasets

    try:
        with quiet_datasets():
            loaded = datasets.load_dataset(
                name, source.subset, split=split, revision=source.revision, streaming=streaming
            )
    except (OSError, ValueError, RuntimeError) as error:
        # The hub client has its own error classes; all of them derive from these three and say what is missing.
        check = "the name, the subset and the split" if role in DEFAULT_SPLITS else "the name"
        raise DataError(
            f"{setting(role)}: {name} (subset {source.subset or 'none'}, split {split}) could not be loaded "
            f"from the hub: {first_line(error)}. Check {check}, or give a file."
        ) from None
    return _dataset_table(loaded, name, role)


def _dataset_table(loaded: Any, where: str, role: str) -> Table:
    import datasets

    columns = loaded.column_names
    if columns is None:  # a stream whose columns only its rows reveal
        columns = list(dict.fromkeys(name for row in loaded.take(LOOKED_AT) for name in row))
    if not columns or getattr(loaded, "num_rows", 1) == 0:
        raise DataError(f"{setting(role)}: {where} is empty: it has no row.")
    plain = isinstance(loaded, datasets.Dataset) and loaded.format["type"] is None
    return Table(where, tuple(columns), enumerate(_arrow_rows(loaded) if plain else loaded, 1))


def _arrow_rows(loaded: Any) -> Iterator[Row]:
    """Yield the same rows as iterating over the data set, many times faster: cells are decoded batch by batch."""
    for batch in loaded.iter(ARROW_ROWS):
        for cells in zip(*batch.values(), strict=True):
            yield dict(zip(batch, cells, strict=True))


def _renamed(table: Table, columns: Mapping[str, str], role: str) -> Table:
    if not columns:
        return table
    missing = [found for found in columns.values() if found not in table.columns]
    if missing:
        raise DataError(
            f"{setting(role, 'columns')} names {', '.join(missing)}, but {table.where} has: {', '.join(table.columns)}."
        )
    to_ours = {found: wanted for wanted, found in columns.items()}
    kept = [name for name in table.columns if name in to_ours or name not in columns]
    names = tuple(to_ours.get(name, name) for name in kept)
    rows = _RenamedRows(table.rows, dict(zip(names, kept, strict=True)))
    return Table(table.where, names, rows, table.unit)


@dataclass(frozen=True)
class _RenamedRows:
    """Rows with renamed columns, read anew on each iteration."""

    rows: Iterable[tuple[int, Row]]
    source_of: Mapping[str, str]

    def __iter__(self) -> Iterator[tuple[int, Row]]:
        for number, row in self.rows:
            yield number, {name: row.get(found) for name, found in self.source_of.items()}
