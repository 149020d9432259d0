"""In-memory data sets: prepared as in the reference, angle_emb, and stored where the training loop reads them."""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from angle.cache import cache_folder
from angle.config import FORMAT_NAMES, SourceConfig
from angle.data.formats import resolve_format
from angle.errors import ConfigError, DataError, first_line
from angle.modeling.tokenizer import template_fields
from angle.prompts import NAMED_PROMPTS
from angle.quiet import quiet_datasets
from angle.structures import FORMATS

if TYPE_CHECKING:
    from datasets import Dataset

#: Column that `AngleDataTokenizer` adds, which says how to read the rows.
EXTRA = "extra"


class DatasetFormats:
    """The columns of the three formats of training rows."""

    A = ",".join(FORMATS["A"].columns)
    B = ",".join(FORMATS["B"].columns)
    C = ",".join(FORMATS["C"].columns)

    @classmethod
    def list_formats(cls) -> None:
        """Print the formats."""
        for name in FORMAT_NAMES:
            print(f"DatasetFormats.{name}", "=", repr(getattr(cls, name)))


class AngleDataTokenizer:
    """Prepares rows for `AnglE.fit`: `dataset.map(AngleDataTokenizer(angle.tokenizer, angle.max_length))`.

    It checks a row's columns and records how its texts are formatted. `fit` tokenises each distinct text once and
    keeps the tokens on disk, so nothing is padded or stored twice.
    """

    def __init__(
        self,
        tokenizer: Any,
        max_length: int | None = None,
        prompt_template: str | None = None,
        extra_columns: Sequence[str] | None = None,
        dataset_format: str | None = None,
        end_with_eos: bool = False,
    ) -> None:
        """Set how rows are read.

        Args:
            tokenizer: the model's tokenizer; with `end_with_eos` it must have an end token.
            max_length: maximum tokens per text; None: the model's own limit.
            prompt_template: a template with {text}, or A, B or C.
            extra_columns: further columns that the template uses; optional, since the template names them.
            dataset_format: A, B or C; None: detected from the columns.
            end_with_eos: whether every text ends with the tokenizer's end token.

        Raises:
            ConfigError: the template cannot be parsed, the format is unknown, or there is no end token.

        """
        prompt = NAMED_PROMPTS.get(prompt_template or "", prompt_template)
        self.columns = [name for name in template_fields(prompt) if name != "text"] if prompt else []
        missing = sorted(set(extra_columns or ()) - set(self.columns))
        if missing:
            raise ConfigError(f"extra_columns has {missing[0]!r}, which the template {prompt!r} does not use.")
        if dataset_format not in (None, *FORMAT_NAMES):
            known = ", ".join(FORMAT_NAMES)
            raise ConfigError(f"dataset_format={dataset_format} is not known. Choose one of: {known}.")
        if end_with_eos and tokenizer.eos_token is None:
            raise ConfigError("end_with_eos=True cannot work: the tokenizer has no end token; leave it out.")
        self.wanted = dataset_format or "auto"
        self.note = {"prompt": prompt, "max_length": max_length, "end_token": end_with_eos or None}

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the column to add to a row.

        Raises:
            DataError: the columns match no format, or a column of the template is missing.

        """
        found = resolve_format(tuple(row), self.wanted, "train", "the data set")
        absent = [name for name in self.columns if name not in row]
        if absent:
            raise DataError(f"The template uses {{{absent[0]}}}, but the data set has the columns {', '.join(row)}.")
        return {EXTRA: {"dataset_format": found.name, **self.note}}


def notes_of(data: Any) -> dict[str, Any]:
    """Return how to read prepared rows (format, template, maximum length, end token), {} for rows not prepared."""
    if not hasattr(data, "column_names") or EXTRA not in data.column_names or not len(data):
        return {}
    note = data[0][EXTRA]
    return dict(note) if isinstance(note, Mapping) and "dataset_format" in note else {}


def as_source(data: Any, argument: str) -> SourceConfig:
    """Return the source from which the training loop reads the rows of a data set.

    Args:
        data: a `datasets.Dataset`, rows (mappings), or their location: a file, a folder, or a name on the hub.
        argument: name of the argument, for messages.

    Raises:
        DataError: the data set has several splits, is a stream, or holds no rows.

    """
    if data is None:
        return SourceConfig()
    if isinstance(data, SourceConfig):
        return data
    if isinstance(data, (str, Path)):
        return SourceConfig(str(data))
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
    data = data.remove_columns([name for name in (EXTRA,) if notes_of(data)])
    folder = cache_folder("datasets") / f"{argument}-{_digest(data)[:16]}"
    if not folder.is_dir():
        scratch = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
        with quiet_datasets():
            data.save_to_disk(str(scratch))
        try:
            scratch.rename(folder)
        except OSError:  # another process has already written the same rows
            shutil.rmtree(scratch)
    return SourceConfig(str(folder))


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return rows by column: None where a row lacks one; if any cell of a column is a list, all texts become lists."""
    found = {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}
    for name, cells in found.items():
        if any(isinstance(cell, (list, tuple)) for cell in cells):
            found[name] = [[cell] if isinstance(cell, str) else cell for cell in cells]
    return found


def _digest(data: Dataset) -> str:
    """Return a hash of all cells: a data set's own fingerprint changes if a function could not be pickled."""
    digest = hashlib.sha256(str(data.features).encode())
    for table in data.with_format("arrow").iter(1000):
        digest.update(json.dumps(table.to_pydict(), default=str).encode())
    return digest.hexdigest()
