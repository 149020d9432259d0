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
from angle.data.purposes import DEFAULT_SPLITS, default_split, setting_name
from angle.errors import DataError, first_line
from angle.quiet import quiet_datasets

SAMPLE = "sample"
#: Rows read from a data set at a time: enough to make the overhead of a batch negligible.
ARROW_BATCH_ROWS = 1000

#: Leading rows of a stream that determine its columns: a JSON object may leave some out.
COLUMN_DETECTION_ROWS = 1000

#: Bytes at the beginning and at the end of a streamed file that are hashed to tell it from others.
FINGERPRINT_BYTES = 2**20

Row = Mapping[str, Any]

#: Yields the numbered rows of a file, given its path and purpose.
RowReader = Callable[[Path, str], Iterator[tuple[int, Row]]]


@dataclass(frozen=True)
class Table:
    """Rows of one source, read on demand, and how to refer to them."""

    name: str
    """The file, folder or hub name."""
    columns: tuple[str, ...]
    """Column names after renaming."""
    rows: Iterable[tuple[int, Row]]
    """Number of the row or line, counting from 1, and the row."""
    unit: str = "row"
    """What the numbers count: "row" or "line"."""


def open_tables(
    source: SourceConfig, purpose: str, data_format: str = "auto", *, streaming: bool = False
) -> list[Table]:
    """Return the tables of a source, with columns renamed, in the order in which the source names them.

    Args:
        source: names at least one table.
        purpose: one of `angle.data.purposes`, for messages and for the default split.
        data_format: which format the built-in sample has ("auto": A).
        streaming: read files and hub data as a stream instead of all at once. An error in a row is then raised when
            that row is reached, except in the first rows of a file, which are read to find its columns.

    Raises:
        DataError: a source with nothing readable, or columns to rename that it does not have.

    """
    split = source.split or default_split(purpose)
    tables = []
    for name in source.names():
        if name == SAMPLE:
            table = _sample_table(split, data_format)
        elif Path(name).exists() or name.startswith((".", "/", "~")) or _file_ending(name) is not None:
            table = _local_table(Path(name).expanduser(), split, purpose, streaming)
        else:
            table = _hub_table(name, source, split, purpose, streaming)
        tables.append(_rename_columns(table, source.columns, purpose))
    return tables


def fingerprint_of_files(source: SourceConfig) -> str | None:
    """Return a hash of the sizes, beginnings and ends of a source's files; None if not all of it is files.

    Streamed files may be too large to be hashed completely.
    """
    digest = hashlib.sha256()
    for name in source.names():
        path = Path(name).expanduser()
        if not path.is_file():
            return None
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            digest.update(str(size).encode())
            for offset in (0, max(0, size - FINGERPRINT_BYTES)):
                file.seek(offset)
                digest.update(file.read(FINGERPRINT_BYTES))
    return digest.hexdigest()


def _file_ending(name: str) -> str | None:
    plain = name.lower().removesuffix(".gz")
    return next((ending for ending in FILE_READERS if plain.endswith(ending)), None)


def _sample_table(split: str, data_format: str) -> Table:
    if split not in sample.SPLITS:
        raise DataError(f"The built-in sample has no split {split}: choose one of {', '.join(sample.SPLITS)}.")
    columns = sample.columns("A" if data_format == "auto" else data_format, split)
    names = tuple(columns)
    rows = [dict(zip(names, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return Table(f"{SAMPLE} ({split})", names, list(enumerate(rows, 1)))


def _local_table(path: Path, split: str, purpose: str, streaming: bool) -> Table:
    if not path.exists():
        raise DataError(f"{setting_name(purpose)}: {path} does not exist; the folder you are in is {Path.cwd()}.")
    if path.is_dir():
        return _disk_table(path, split, purpose)
    ending = _file_ending(path.name)
    if ending is None:
        raise DataError(
            f"{setting_name(purpose)}: {path} cannot be read: a file must end in {', '.join(FILE_READERS)}; a text "
            f"file may be compressed (.gz)."
        )
    if path.stat().st_size == 0:
        raise DataError(f"{setting_name(purpose)}: {path} is empty.")
    return FILE_READERS[ending](path, purpose, streaming)


def _json_table(path: Path, purpose: str, streaming: bool) -> Table:
    if _holds_a_list(path, purpose):  # which can only be parsed in one go
        return _text_table(path, purpose, _json_list, streaming=False)
    return _text_table(path, purpose, _json_lines, streaming, unit="line")


def _csv_table(path: Path, purpose: str, streaming: bool) -> Table:
    return _text_table(path, purpose, _csv_rows, streaming)


def _text_table(path: Path, purpose: str, read: RowReader, streaming: bool, unit: str = "row") -> Table:
    """Return the table of a text file; unless streaming, all of its rows are read at once."""
    rows: Iterable[tuple[int, Row]] = _FileRows(path, purpose, read)
    if not streaming:
        rows = list(rows)
    leading_rows = islice(rows, COLUMN_DETECTION_ROWS) if streaming else rows
    columns = dict.fromkeys(name for _, row in leading_rows for name in row)
    if not columns:
        raise DataError(f"{setting_name(purpose)}: {path} is empty: it has no row.")
    return Table(str(path), tuple(columns), rows, unit)


@dataclass(frozen=True)
class _FileRows:
    """Numbered rows of a text file, which each iteration opens anew and reads only as far as needed."""

    path: Path
    purpose: str
    read: RowReader

    def __iter__(self) -> Iterator[tuple[int, Row]]:
        with _explain_unreadable(self.path, self.purpose):
            yield from self.read(self.path, self.purpose)


@contextmanager
def _explain_unreadable(path: Path, purpose: str) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        raise DataError(
            f"{setting_name(purpose)}: {path} is not written in UTF-8 ({error.reason}: "
            f"{error.object[error.start]:#04x}); save it as UTF-8."
        ) from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"{setting_name(purpose)}: {path} is not a complete gzip file: {str(error).rstrip('.')}."
        ) from None


def _open_text(path: Path) -> Any:
    opener = gzip.open if path.suffix.lower() == ".gz" else open
    return opener(path, "rt", encoding="utf-8-sig", newline="")


def _holds_a_list(path: Path, purpose: str) -> bool:
    """Return whether a JSON file is one list of objects rather than one object per line."""
    with _explain_unreadable(path, purpose), _open_text(path) as file:
        return bool(file.read(1024).lstrip()[:1] == "[")


def _json_list(path: Path, purpose: str) -> Iterator[tuple[int, Row]]:
    with _open_text(path) as file:
        items = _parse_json(file.read(), 1, path, purpose)
    for number, item in enumerate(items, 1):
        yield number, _as_object(item, f"row {number}", path, purpose)


def _json_lines(path: Path, purpose: str) -> Iterator[tuple[int, Row]]:
    with _open_text(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                item = _parse_json(line.rstrip("\r\n"), number, path, purpose)
                yield number, _as_object(item, f"line {number}", path, purpose)


def _as_object(item: Any, location: str, path: Path, purpose: str) -> Row:
    if not isinstance(item, dict):
        raise DataError(
            f"{setting_name(purpose)}: {path} {location} is not a JSON object with a name for each column: "
            f"{json.dumps(item)[:60]}"
        )
    return item


def _parse_json(text: str, first_line: int, path: Path, purpose: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise DataError(
            f"{setting_name(purpose)}: {path} line {line} is not valid JSON: {error.msg} (column {error.colno})."
        ) from None


def _csv_rows(path: Path, purpose: str) -> Iterator[tuple[int, Row]]:
    """Yield the rows below a header. Cells stay text as written: an NA or null in a sentence is a word."""
    csv.field_size_limit(2**31 - 1)  # a cell may be a document
    with _open_text(path) as file:
        # A tab-separated file is usually written without quoting, so a quotation mark is a character there.
        tab_separated = ".tsv" in path.name.lower()
        reader = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if tab_separated else csv.reader(file)
        header = next(reader, [])
        repeated = [name for name in header if header.count(name) > 1]
        if repeated:
            raise DataError(
                f"{setting_name(purpose)}: {path} has two columns named {repeated[0]}: rename one in its header."
            )
        for number, cells in enumerate((cells for cells in reader if cells), 1):
            if len(cells) != len(header):
                raise DataError(
                    f"{setting_name(purpose)}: {path} row {number} has {len(cells)} cells, but its header names "
                    f"{len(header)} columns: {', '.join(header)}."
                )
            yield number, dict(zip(header, cells, strict=True))


def _parquet_table(path: Path, purpose: str, streaming: bool) -> Table:
    """Return the table of a parquet file, which is read batch by batch, streaming or not."""
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    try:
        file = parquet.ParquetFile(path)
    except (arrow.ArrowInvalid, OSError) as error:
        raise DataError(
            f"{setting_name(purpose)}: {path} is not a readable parquet file: {first_line(error)}."
        ) from None
    if file.metadata.num_rows == 0:
        raise DataError(f"{setting_name(purpose)}: {path} is empty: it has no row.")
    rows = (row for batch in file.iter_batches() for row in batch.to_pylist())
    return Table(str(path), tuple(file.schema_arrow.names), enumerate(rows, 1))


#: What reads a file, by its ending, given its path, its purpose and whether it is streamed.
FILE_READERS: dict[str, Callable[[Path, str, bool], Table]] = {
    ".json": _json_table,
    ".jsonl": _json_table,
    ".csv": _csv_table,
    ".tsv": _csv_table,
    ".parquet": _parquet_table,
}


def _disk_table(path: Path, split: str, purpose: str) -> Table:
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except (FileNotFoundError, ValueError) as error:
        raise DataError(
            f"{setting_name(purpose)}: {path} is not a folder that datasets' save_to_disk wrote: {first_line(error)}."
        ) from None
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            first = next(iter(loaded))
            suggestion = (
                f"{setting_name(purpose, 'split')}={first}" if purpose in DEFAULT_SPLITS else f"tasks=[{path / first}]"
            )
            raise DataError(
                f"{setting_name(purpose)}: {path} has no split {split}; it has {', '.join(loaded)}: type {suggestion}"
            )
        loaded = loaded[split]
    return _dataset_table(loaded, str(path), purpose)


def _hub_table(name: str, source: SourceConfig, split: str, purpose: str, streaming: bool) -> Table:
    import datasets

    try:
        with quiet_datasets():
            loaded = datasets.load_dataset(
                name, source.subset, split=split, revision=source.revision, streaming=streaming
            )
    except (OSError, ValueError, RuntimeError) as error:
        # The hub client has its own error classes; all of them derive from these three and say what is missing.
        check = "the name, the subset and the split" if purpose in DEFAULT_SPLITS else "the name"
        raise DataError(
            f"{setting_name(purpose)}: {name} (subset {source.subset or 'none'}, split {split}) could not be loaded "
            f"from the hub: {first_line(error)}. Check {check}, or give a file."
        ) from None
    return _dataset_table(loaded, name, purpose)


def _dataset_table(loaded: Any, name: str, purpose: str) -> Table:
    import datasets

    columns = loaded.column_names
    if columns is None:  # a stream whose columns only its rows reveal
        columns = list(dict.fromkeys(column for row in loaded.take(COLUMN_DETECTION_ROWS) for column in row))
    if not columns or getattr(loaded, "num_rows", 1) == 0:
        raise DataError(f"{setting_name(purpose)}: {name} is empty: it has no row.")
    plain = isinstance(loaded, datasets.Dataset) and loaded.format["type"] is None
    return Table(name, tuple(columns), enumerate(_arrow_rows(loaded) if plain else loaded, 1))


def _arrow_rows(loaded: Any) -> Iterator[Row]:
    """Yield the same rows as iterating over the data set, many times faster: cells are decoded batch by batch."""
    for batch in loaded.iter(ARROW_BATCH_ROWS):
        for cells in zip(*batch.values(), strict=True):
            yield dict(zip(batch, cells, strict=True))


def _rename_columns(table: Table, columns: Mapping[str, str], purpose: str) -> Table:
    if not columns:
        return table
    missing = [column for column in columns.values() if column not in table.columns]
    if missing:
        raise DataError(
            f"{setting_name(purpose, 'columns')} names {', '.join(missing)}, but {table.name} has: "
            f"{', '.join(table.columns)}."
        )
    new_name_of = {column: name for name, column in columns.items()}
    source_columns = [name for name in table.columns if name in new_name_of or name not in columns]
    names = tuple(new_name_of.get(name, name) for name in source_columns)
    rows = _RenamedRows(table.rows, dict(zip(names, source_columns, strict=True)))
    return Table(table.name, names, rows, table.unit)


@dataclass(frozen=True)
class _RenamedRows:
    """Rows with renamed columns, read anew on each iteration."""

    rows: Iterable[tuple[int, Row]]
    source_column_of: Mapping[str, str]
    """Column in the source by its new name."""

    def __iter__(self) -> Iterator[tuple[int, Row]]:
        for number, row in self.rows:
            yield number, {name: row.get(column) for name, column in self.source_column_of.items()}
