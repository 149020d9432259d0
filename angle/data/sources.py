"""Where rows come from: files, data sets on disk or on the hub, and the built-in sample."""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from angle.config import SourceConfig
from angle.data import sample
from angle.errors import DataError

SAMPLE = "sample"
FILE_ENDINGS = (".json", ".jsonl", ".csv", ".tsv", ".parquet")
DEFAULT_SPLITS = {"train": "train", "valid": "validation", "valid_sts": "validation", "test": "test"}

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """Rows of one source, read as they are asked for, and what to call them."""

    where: str
    """The file, folder or hub name."""
    columns: tuple[str, ...]
    """Names after renaming."""
    rows: Iterable[tuple[int, Row]]
    """Number of the row or line, counted from 1, and the row."""
    unit: str = "row"
    """What the numbers count: row or line."""


def open_tables(source: SourceConfig, role: str, data_format: str = "auto", *, streaming: bool = False) -> list[Table]:
    """Return the tables of a source in the order they are named, columns renamed.

    Args:
        source: names at least one table.
        role: train, valid, valid_sts or test: for messages, and for the split when none is given.
        data_format: which format the built-in sample takes ("auto": A).
        streaming: read hub data as it comes instead of downloading all of it first.

    Raises:
        DataError: a place that holds nothing readable, or columns to rename that it does not have.

    """
    split = source.split or DEFAULT_SPLITS[role]
    tables = []
    for name in source.names():
        if name == SAMPLE:
            table = _sample_table(split, data_format)
        elif Path(name).exists() or name.startswith((".", "/", "~")) or _ending(name) is not None:
            table = _local_table(Path(name).expanduser(), split, role)
        else:
            table = _hub_table(name, source, split, role, streaming)
        tables.append(_renamed(table, source.columns, role))
    return tables


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


def _local_table(path: Path, split: str, role: str) -> Table:
    if not path.exists():
        raise DataError(f"data.{role}: {path} does not exist; the folder you are in is {Path.cwd()}.")
    if path.is_dir():
        return _disk_table(path, split, role)
    ending = _ending(path.name)
    if ending is None:
        raise DataError(
            f"data.{role}: {path} cannot be read: a file must end in {', '.join(FILE_ENDINGS)}, all but "
            f".parquet also with .gz behind."
        )
    if path.stat().st_size == 0:
        raise DataError(f"data.{role}: {path} is empty.")
    if ending == ".parquet":
        return _parquet_table(path, role)
    read = {".jsonl": _json_rows, ".json": _json_rows, ".csv": _csv_rows, ".tsv": _csv_rows}[ending]
    try:
        unit, rows = read(path, role)
    except UnicodeDecodeError as error:
        raise DataError(
            f"data.{role}: {path} is not written in UTF-8 ({error.reason}: {error.object[error.start]:#04x}); "
            f"save it as UTF-8."
        ) from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"data.{role}: {path} is no whole gzip file: {str(error).rstrip('.')}.") from None
    if not rows:
        raise DataError(f"data.{role}: {path} is empty: it has no row.")
    return Table(str(path), tuple(rows[0][1]), rows, unit)


def _open_text(path: Path) -> Any:
    opener = gzip.open if path.suffix.lower() == ".gz" else open
    return opener(path, "rt", encoding="utf-8-sig", newline="")


def _json_rows(path: Path, role: str) -> tuple[str, list[tuple[int, Row]]]:
    """Return the objects of a file, one a line or one list of them, and what their numbers count."""
    with _open_text(path) as file:
        start = file.read(1024).lstrip()[:1]
        file.seek(0)
        if start == "[":
            unit, items = "row", list(enumerate(_parse(file.read(), 1, path, role), 1))
        else:
            lines = enumerate(file, 1)
            unit = "line"
            items = [
                (number, _parse(line.rstrip("\r\n"), number, path, role)) for number, line in lines if line.strip()
            ]
    for number, item in items:
        if not isinstance(item, dict):
            raise DataError(
                f"data.{role}: {path} {unit} {number} is no JSON object with a name for each column: "
                f"{json.dumps(item)[:60]}"
            )
    return unit, items


def _parse(text: str, first_line: int, path: Path, role: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise DataError(
            f"data.{role}: {path} line {line} is no valid JSON: {error.msg} (column {error.colno})."
        ) from None


def _csv_rows(path: Path, role: str) -> tuple[str, list[tuple[int, Row]]]:
    """Return the rows below a header. Cells stay texts as written: an NA or null in a sentence is a word."""
    csv.field_size_limit(2**31 - 1)  # a cell may be a document
    with _open_text(path) as file:
        # A tab-separated file is usually written without quoting, so a quotation mark is a character there.
        tabs = ".tsv" in path.name.lower()
        reader = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if tabs else csv.reader(file)
        header = next(reader, [])
        twice = [name for name in header if header.count(name) > 1]
        if twice:
            raise DataError(f"data.{role}: {path} has two columns named {twice[0]}: rename one in its header.")
        rows: list[tuple[int, Row]] = []
        for number, cells in enumerate((cells for cells in reader if cells), 1):
            if len(cells) != len(header):
                raise DataError(
                    f"data.{role}: {path} row {number} has {len(cells)} cells, but its header names "
                    f"{len(header)} columns: {', '.join(header)}."
                )
            rows.append((number, dict(zip(header, cells, strict=True))))
    return "row", rows


def _parquet_table(path: Path, role: str) -> Table:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    try:
        file = parquet.ParquetFile(path)
    except (arrow.ArrowInvalid, OSError) as error:
        raise DataError(f"data.{role}: {path} is no readable parquet file: {str(error).splitlines()[0]}") from None
    if file.metadata.num_rows == 0:
        raise DataError(f"data.{role}: {path} is empty: it has no row.")
    rows = (row for batch in file.iter_batches() for row in batch.to_pylist())
    return Table(str(path), tuple(file.schema_arrow.names), enumerate(rows, 1))


def _disk_table(path: Path, split: str, role: str) -> Table:
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except (FileNotFoundError, ValueError) as error:
        raise DataError(
            f"data.{role}: {path} is no folder that datasets' save_to_disk wrote: {str(error).splitlines()[0]}"
        ) from None
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            raise DataError(
                f"data.{role}: {path} has no split {split}; it has {', '.join(loaded)}: type "
                f"data.{role}.split={next(iter(loaded))}"
            )
        loaded = loaded[split]
    return _dataset_table(loaded, str(path), role)


def _hub_table(name: str, source: SourceConfig, split: str, role: str, streaming: bool) -> Table:
    import datasets

    datasets.disable_progress_bars()
    try:
        loaded = datasets.load_dataset(name, source.subset, split=split, revision=source.revision, streaming=streaming)
    except (OSError, ValueError, RuntimeError) as error:
        # The hub client has error classes of its own; all are one of these three, and say what is missing.
        raise DataError(
            f"data.{role}: {name} (subset {source.subset or 'none'}, split {split}) could not be loaded "
            f"from the hub: {str(error).strip().splitlines()[0].rstrip('.')}. Check the name, the subset and the "
            f"split, or give a file."
        ) from None
    return _dataset_table(loaded, name, role)


def _dataset_table(loaded: Any, where: str, role: str) -> Table:
    columns = loaded.column_names
    if columns is None:  # a stream that has to be looked into
        columns = list(next(iter(loaded.take(1)), {}))
    if not columns or getattr(loaded, "num_rows", 1) == 0:
        raise DataError(f"data.{role}: {where} is empty: it has no row.")
    return Table(where, tuple(columns), enumerate(loaded, 1))


def _renamed(table: Table, columns: Mapping[str, str], role: str) -> Table:
    if not columns:
        return table
    missing = [found for found in columns.values() if found not in table.columns]
    if missing:
        raise DataError(
            f"data.{role}.columns names {', '.join(missing)}, but {table.where} has: {', '.join(table.columns)}."
        )
    to_ours = {found: wanted for wanted, found in columns.items()}
    kept = [name for name in table.columns if name in to_ours or name not in columns]
    names = tuple(to_ours.get(name, name) for name in kept)
    rows = _RenamedRows(table.rows, dict(zip(names, kept, strict=True)))
    return Table(table.where, names, rows, table.unit)


@dataclass(frozen=True)
class _RenamedRows:
    """Rows under new names, read anew each time."""

    rows: Iterable[tuple[int, Row]]
    source_of: Mapping[str, str]

    def __iter__(self) -> Iterator[tuple[int, Row]]:
        for number, row in self.rows:
            yield number, {name: row.get(found) for name, found in self.source_of.items()}
