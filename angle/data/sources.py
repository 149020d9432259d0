"""Where rows come from: files, data sets on disk or on the hub, and the built-in sample."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from angle.config import SAMPLE, LimitsConfig, SourceConfig
from angle.data import sample
from angle.data.arrow_files import disk_table, hub_table, parquet_table
from angle.data.folders import is_saved, split_files
from angle.data.purposes import default_split, setting_name
from angle.data.table import Request, Row, Table
from angle.data.text_files import csv_table, file_state, json_table, tsv_table
from angle.errors import DataError, listed
from angle.structures import FORMATS, NEGATIVE_COLUMN

#: A streamed file is told from others by this many of its pieces, evenly spaced, and bytes of each.
FINGERPRINT_PIECES, FINGERPRINT_BYTES = 32, 2**18
#: What angle_emb calls the column text from release 0.6 on, and many data sets on the hub.
QUERY = "query"
#: All columns that some format has; there may be more of negatives.
ROLES = frozenset(column for data_format in FORMATS.values() for column in data_format.columns)
#: What reads a file, by its ending.
FILE_READERS: dict[str, Callable[[Path, Request], Table]] = {
    ".json": json_table,
    ".jsonl": json_table,
    ".csv": csv_table,
    ".tsv": tsv_table,
    ".parquet": parquet_table,
}


def open_tables(
    source: SourceConfig,
    purpose: str,
    data_format: str = "auto",
    *,
    template_columns: Iterable[str] = (),
    limits: LimitsConfig | None = None,
    streaming: bool = False,
) -> list[Table]:
    """Return the tables of a source, with columns renamed, in the order in which the source names them.

    Args:
        source: names at least one table.
        purpose: one of `angle.data.purposes`, for messages and for the default split.
        data_format: which format the built-in sample has ("auto": A).
        template_columns: columns that are read beside those of the formats.
        limits: what is read at most; None: the defaults.
        streaming: read files and hub data as a stream instead of all at once. An error in a row is then raised when
            that row is reached, except in the first rows of a file, which are read to find its columns.

    Raises:
        DataError: a source with nothing readable, or columns to rename that it does not have.

    """
    split = source.split or default_split(purpose)
    is_used = _column_filter(source.columns, ROLES.union((QUERY,), template_columns))
    request = Request(purpose, is_used, limits or LimitsConfig(), streaming)
    tables = []
    for name in source.names():
        if name == SAMPLE:
            found = [_sample_table(split, data_format)]
        elif Path(name).exists() or name.startswith((".", "/", "~")) or _file_ending(name) is not None:
            found = _local_tables(Path(name).expanduser(), source.subset, split, request)
        else:
            found = [hub_table(name, source, split, request)]
        tables += [_query_as_text(_rename_columns(table, source.columns, request)) for table in found]
    return tables


def _column_filter(renamed: Mapping[str, str | None], names: Iterable[str]) -> Callable[[str], bool]:
    """Return whether a column, by its name in the source, has one of these names or is one of negatives."""
    wanted = {renamed.get(name, name) for name in names}
    wanted.update(column for name, column in renamed.items() if NEGATIVE_COLUMN.fullmatch(name))
    return lambda column: column in wanted or (column not in renamed and NEGATIVE_COLUMN.fullmatch(column) is not None)


def file_states(source: SourceConfig) -> list[tuple[int, int, int]]:
    """Return what tells whether one of a source's files is written to or replaced, without reading them."""
    return [file_state(path) for name in source.names() for path in _files_at(Path(name).expanduser())]


def _files_at(path: Path) -> list[Path]:
    """Return the file at a path, or those in a folder of files.

    None of a data set on the hub, and of one by `save_to_disk`: there, others may keep files of their own.
    """
    if path.is_file():
        return [path]
    files = () if is_saved(path) else path.rglob("*")
    return sorted(file for file in files if file.is_file() and _file_ending(file.name) is not None)


def fingerprint_of_files(source: SourceConfig) -> str | None:
    """Return a hash of the sizes and of pieces of a source's files; None if not all of it is files.

    Streamed files may be too large to be hashed completely. While they are read, `file_states` sees every change.
    """
    digest = hashlib.sha256()
    paths = [_files_at(Path(name).expanduser()) for name in source.names()]
    if not all(paths):
        return None
    for path in itertools.chain(*paths):
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            digest.update(str(size).encode())
            last = max(0, size - FINGERPRINT_BYTES)
            for offset in sorted({last * piece // (FINGERPRINT_PIECES - 1) for piece in range(FINGERPRINT_PIECES)}):
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


def _local_tables(path: Path, subset: str | None, split: str, request: Request) -> list[Table]:
    if not path.exists():
        raise request.error(path, f"does not exist; the folder you are in is {Path.cwd()}.")
    if not path.is_dir():
        return [_file_table(path, request)]
    if is_saved(path):
        return [disk_table(path, split, request)]
    return [_file_table(file, request) for file in split_files(path, subset, split, request)]


def _file_table(path: Path, request: Request) -> Table:
    ending = _file_ending(path.name)
    if ending is None:
        raise request.error(
            path,
            f"cannot be read: a file must end in {', '.join(FILE_READERS)}; a text file may be compressed (.gz).",
        )
    if path.stat().st_size == 0:
        raise request.error(path, "is empty.")
    return FILE_READERS[ending](path, request)


def _rename_columns(table: Table, columns: Mapping[str, str | None], request: Request) -> Table:
    """Return a table with renamed columns, without those that are to be left out."""
    if not columns:
        return table
    setting = setting_name(request.purpose, "columns")
    left_out = [name for name, column in columns.items() if column is None]
    new_name_of = {column: name for name, column in columns.items() if column is not None}
    missing = [column for column in (*new_name_of, *left_out) if column not in table.columns]
    if missing:
        raise DataError(f"{setting} names {listed(missing)}, but {table.name} has: {listed(table.columns)}.")
    if len(new_name_of) + len(left_out) < len(columns):
        repeated = next(c for c in new_name_of if list(columns.values()).count(c) > 1)
        raise DataError(f"{setting} gives {repeated} several names: a column can have one.")
    kept = {
        new_name_of.get(column, column): column
        for column in table.columns
        if column in new_name_of or column not in columns
    }
    used = {name: column for name, column in kept.items() if request.is_used(column)}
    return replace(table, columns=tuple(kept), rows=RenamedRows(table.rows, used))


def _query_as_text(table: Table) -> Table:
    """Return a table whose column `query` is called text if it has none of that name, but positives."""
    if "text" in table.columns or not {QUERY, "positive"}.issubset(table.columns):
        return table
    kept = {("text" if column == QUERY else column): column for column in table.columns}
    return replace(table, columns=tuple(kept), rows=RenamedRows(table.rows, kept))


@dataclass(frozen=True)
class RenamedRows:
    """Rows with renamed columns, read anew on each iteration."""

    rows: Iterable[tuple[int, Row]]
    source_column_of: Mapping[str, str]
    """Column in the source by its new name."""

    def __iter__(self) -> Iterator[tuple[int, Row]]:
        for number, row in self.rows:
            yield number, {name: row.get(column) for name, column in self.source_column_of.items()}
