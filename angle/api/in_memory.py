"""Data sets given in memory: stored where the training loop reads them, for as long as they are needed."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from angle.api.datasets import EXTRA_COLUMN, preparation_of
from angle.config import SourceConfig, TrainConfig
from angle.distributed.environment import is_main_process
from angle.errors import DataError, first_line
from angle.files import replace_folder
from angle.quiet import quiet_datasets
from angle.training.run_folder import DATA_FOLDER, RunFolder, RunState

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class DataArgument:
    """The data of an argument."""

    source: SourceConfig
    """Where the training loop reads them."""
    dataset: Dataset | None = None
    """Rows in memory, to be stored there first."""

    def store(self) -> None:
        """Write the rows to where they are read, unless they are there already."""
        if self.dataset is None or Path(str(self.source.name_or_path)).is_dir():
            return
        with quiet_datasets():
            replace_folder(Path(str(self.source.name_or_path)), self.dataset.save_to_disk)


def data_argument(data: Any, argument: str, folder: Path) -> DataArgument:
    """Return the data of an argument; nothing is written.

    Args:
        data: a `datasets.Dataset`, rows (mappings), or their location: a file, a folder, a name on the hub, or a list
            of these.
        argument: name of the argument, for messages.
        folder: where to store rows in memory, each data set in a folder named after its contents.

    Raises:
        DataError: the data set has several splits, is a stream, or holds no rows.

    """
    if isinstance(data, SourceConfig):
        return DataArgument(data)
    if isinstance(data, (str, Path)):
        return DataArgument(SourceConfig(str(data)))
    if isinstance(data, (list, tuple)) and data and all(isinstance(name, (str, Path)) for name in data):
        return DataArgument(SourceConfig(list(map(str, data))))
    dataset = _as_dataset(data, argument)
    return DataArgument(SourceConfig(str(folder / f"{argument}-{_digest(dataset)[:16]}")), dataset)


@contextmanager
def stored_for_run(run: RunFolder, config: TrainConfig, data_arguments: Iterable[DataArgument]) -> Iterator[None]:
    """Store rows in the run's folder before it is trained; they stay until it is finished, for resuming.

    Raises:
        ConfigError: the folder holds a run with other settings, or anything that is not a run.

    """
    in_memory = [data for data in data_arguments if data.dataset is not None]
    # A run that is resumed by name stored its rows when it was started.
    if not in_memory or config.train.resume is not None or not is_main_process():
        yield
        return
    created = [path for path in (run.path, *run.path.parents) if not path.exists()]
    if run.check_config(config) is not RunState.FINISHED:
        for data in in_memory:
            data.store()
    try:
        yield
        if run.state() is RunState.FINISHED:
            shutil.rmtree(run.path / DATA_FOLDER, ignore_errors=True)
    except BaseException:
        if run.state() is RunState.NEW:
            shutil.rmtree(run.path / DATA_FOLDER, ignore_errors=True)
            with suppress(OSError):  # not empty: something else is in there by now
                for path in created:
                    path.rmdir()
        raise


@contextmanager
def stored_temporarily(data: Any, argument: str) -> Iterator[SourceConfig]:
    """Store rows in memory in a temporary folder, and yield where to read them."""
    with TemporaryDirectory(prefix="angle-") as folder:
        stored = data_argument(data, argument, Path(folder))
        stored.store()
        yield stored.source


def _as_dataset(data: Any, argument: str) -> Dataset:
    """Return rows as a data set, without the column that `AngleDataTokenizer` adds."""
    import datasets
    from pyarrow import ArrowInvalid, ArrowTypeError

    if isinstance(data, (datasets.DatasetDict, datasets.IterableDatasetDict)):
        raise DataError(f"{argument} has the splits {', '.join(data)}: choose one, such as {argument}=ds['train'].")
    if isinstance(data, datasets.IterableDataset):
        raise DataError(
            f"{argument} is a stream: give its name or its files, with config={{'data': {{'streaming': True}}}}."
        )
    if not isinstance(data, datasets.Dataset):
        rows = list(data) if isinstance(data, Iterable) else []
        if not rows or not all(isinstance(row, Mapping) for row in rows):
            raise DataError(
                f"{argument} must be a data set, rows such as [{{'text1': ...}}], a file or a name on the hub."
            )
        try:
            data = datasets.Dataset.from_dict(_columns(rows))
        except (ArrowInvalid, ArrowTypeError) as error:
            raise DataError(f"{argument} has a column with cells of several types: {first_line(error)}.") from None
        except (OverflowError, UnicodeEncodeError) as error:
            raise DataError(f"{argument} has a cell that cannot be stored: {first_line(error)}.") from None
    return data.remove_columns([EXTRA_COLUMN]) if preparation_of(data) else data


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return rows by column: None where a row lacks one; if any cell of a column is a list, all texts become lists."""
    columns = {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}
    for name, cells in columns.items():
        if any(isinstance(cell, (list, tuple)) for cell in cells):
            columns[name] = [[cell] if isinstance(cell, str) else cell for cell in cells]
    return columns


def _digest(data: Dataset) -> str:
    """Return a hash of all cells: a data set's own fingerprint changes if a function could not be pickled."""
    digest = hashlib.sha256(str(data.features).encode())
    for table in data.with_format("arrow").iter(1000):
        digest.update(json.dumps(table.to_pydict(), default=str).encode())
    return digest.hexdigest()
