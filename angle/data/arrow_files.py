"""Rows of Arrow tables: parquet files, and data sets of the library datasets, on disk or on the hub."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from angle.config import SourceConfig
from angle.data.purposes import is_of_a_run, setting_name
from angle.data.table import Request, Row, Table
from angle.data.text_files import COLUMN_DETECTION_ROWS
from angle.errors import DataError, first_line
from angle.quiet import quiet_datasets

if TYPE_CHECKING:
    from pyarrow import RecordBatch

#: Rows read at a time: enough to make the overhead of a batch negligible.
ARROW_BATCH_ROWS = 1000


def parquet_table(path: Path, request: Request) -> Table:
    """Return the table of a parquet file, which is read batch by batch, streaming or not."""
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    try:
        file = parquet.ParquetFile(path, page_checksum_verification=True)
    except (arrow.ArrowException, OSError) as error:
        raise request.error(path, f"is not a readable parquet file: {first_line(error)}.") from None
    if file.metadata.num_rows == 0:
        raise request.error(path, "is empty: it has no row.")
    columns = tuple(file.schema_arrow.names)
    request.check_columns(path, columns)
    used = list(filter(request.is_used, columns))
    rows = _ArrowRows(path, request, lambda: file.iter_batches(ARROW_BATCH_ROWS, columns=used))
    return Table(str(path), columns, rows)


def disk_table(path: Path, split: str, request: Request) -> Table:
    """Return the table of a folder that `save_to_disk` wrote."""
    import datasets

    for part in path.rglob("*"):
        if part.exists() and not (part.is_file() or part.is_dir()):  # reading a pipe would wait for ever
            raise request.error(path, f"is damaged: {part.name} is no file. Copy or write it again.")
    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:  # of a damaged folder, a different one for each way in which it is
        raise request.error(path, f"is not a folder that datasets' save_to_disk wrote: {first_line(error)}.") from None
    if isinstance(loaded, datasets.DatasetDict):
        if not loaded:
            raise request.error(path, "is empty: it has no split.")
        if split not in loaded:
            raise missing_split(path, split, list(loaded), path / next(iter(loaded)), request)
        loaded = loaded[split]
    return _dataset_table(loaded, str(path), request)


def missing_split(path: Path, split: str, splits: list[str], first: Path, request: Request) -> DataError:
    """Return the error of a folder that has other splits; `first` is what the first of them can be read from."""
    purpose = request.purpose
    suggestion = f"{setting_name(purpose, 'split')}={splits[0]}" if is_of_a_run(purpose) else f"tasks=[{first}]"
    return request.error(path, f"has no split {split}; it has {', '.join(splits)}: type {suggestion}")


def hub_table(name: str, source: SourceConfig, split: str, request: Request) -> Table:
    """Return the table of a data set on the hub."""
    import datasets

    try:
        with quiet_datasets():
            loaded = datasets.load_dataset(
                name, source.subset, split=split, revision=source.revision, streaming=request.streaming
            )
    except (OSError, ValueError, RuntimeError) as error:
        # The hub client has its own error classes; all of them derive from these three and say what is missing.
        check = "the name, the subset and the split" if is_of_a_run(request.purpose) else "the name"
        raise DataError(
            f"{setting_name(request.purpose)}: {name} (subset {source.subset or 'none'}, split {split}) could not be "
            f"loaded from the hub: {first_line(error)}. Check {check}, or give a file."
        ) from None
    return _dataset_table(loaded, name, request)


def _dataset_table(loaded: Any, name: str, request: Request) -> Table:
    import datasets

    columns = loaded.column_names
    if columns is None:  # a stream whose columns only its rows reveal
        columns = list(dict.fromkeys(column for row in loaded.take(COLUMN_DETECTION_ROWS) for column in row))
    if not columns or getattr(loaded, "num_rows", 1) == 0:
        raise request.error(name, "is empty: it has no row.")
    request.check_columns(name, columns)
    used = list(filter(request.is_used, columns))
    if isinstance(loaded, datasets.Dataset):
        # As Arrow has them: images and sounds stay encoded, and a format that was set on the data set has no say.
        selected = loaded.with_format("arrow").select_columns(used)

        def batches() -> Iterator[RecordBatch]:
            return (batch for table in selected.iter(ARROW_BATCH_ROWS) for batch in table.to_batches())

        return Table(name, tuple(columns), _ArrowRows(name, request, batches))
    return Table(name, tuple(columns), enumerate(loaded.select_columns(used), 1))


@dataclass(frozen=True)
class _ArrowRows:
    """Numbered rows, read anew and batch by batch on each iteration."""

    name: Path | str
    request: Request
    batches: Callable[[], Iterable[RecordBatch]]

    def __iter__(self) -> Iterator[tuple[int, Row]]:
        number = 0
        for batch in self._checked_batches():
            names, columns = batch.schema.names, [column.to_pylist() for column in batch.columns]
            for cells in zip(*columns, strict=True):
                number += 1
                yield number, dict(zip(names, cells, strict=True))

    def _checked_batches(self) -> Iterator[RecordBatch]:
        """Yield the batches whose offsets lie within them, and whose texts are UTF-8: Arrow trusts a file in both."""
        import pyarrow as arrow

        try:
            for batch in self.batches():
                batch.validate(full=True)
                yield batch
        except (arrow.ArrowException, OSError) as error:
            raise self.request.error(self.name, f"is damaged: {first_line(error)}. Copy or write it again.") from None
