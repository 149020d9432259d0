"""Data sets prepared as in angle_emb: with a note on how their texts are formatted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from angle.config import FORMAT_NAMES
from angle.data.formats import resolve_format
from angle.data.sources import QUERY
from angle.errors import ConfigError, DataError
from angle.prompts import NAMED_PROMPTS, template_fields
from angle.structures import FORMATS

#: Column that `AngleDataTokenizer` adds, which says how to read the rows.
EXTRA_COLUMN = "extra"


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
        fix_data: bool = True,
        template_placeholders: Sequence[str] | None = None,
    ) -> None:
        """Set how rows are read.

        Args:
            tokenizer: the model's tokenizer; with `end_with_eos` it must have an end token.
            max_length: maximum tokens per text; None: the model's own limit.
            prompt_template: a template with {text}, or A, B or C.
            extra_columns: further columns that the template uses; optional, since the template names them.
            dataset_format: A, B or C; None: detected from the columns.
            end_with_eos: whether every text ends with the tokenizer's end token.
            fix_data: accepted; a template is never cut.
            template_placeholders: accepted; the template says what its braces hold.

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
        self.dataset_format = dataset_format or "auto"
        self.preparation = {"prompt": prompt, "max_length": max_length, "end_token": end_with_eos or None}

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the column to add to a row.

        Raises:
            DataError: the columns match no format, or a column of the template is missing.

        """
        columns = tuple("text" if name == QUERY and "text" not in row else name for name in row)
        data_format = resolve_format(columns, self.dataset_format, "train", "the data set")
        absent = [name for name in self.columns if name not in row]
        if absent:
            raise DataError(f"The template uses {{{absent[0]}}}, but the data set has the columns {', '.join(row)}.")
        return {EXTRA_COLUMN: {"dataset_format": data_format.name, **self.preparation}}


def preparation_of(data: Any) -> dict[str, Any]:
    """Return how to read prepared rows (format, template, maximum length, end token), {} for rows not prepared."""
    if EXTRA_COLUMN not in (getattr(data, "column_names", None) or ()) or not len(data):
        return {}
    preparation = data[0][EXTRA_COLUMN]
    is_ours = isinstance(preparation, Mapping) and "dataset_format" in preparation
    return dict(preparation) if is_ours else {}


def prepared_settings(data: Any, argument: str, max_length: int) -> dict[str, Any]:
    """Return the settings, by dotted name, for which rows were prepared.

    Raises:
        ConfigError: the rows were prepared for another maximum length than the model's.

    """
    preparation = preparation_of(data)
    length = preparation.get("max_length")
    if length is not None and length != max_length:
        raise ConfigError(
            f"{argument} was prepared for max_length={length}, but the model reads {max_length} tokens: give "
            f"both the same, by AnglE.from_pretrained(..., max_length={length})."
        )
    settings = {
        "data_format.name": preparation.get("dataset_format"),
        "model.prompt": preparation.get("prompt"),
        "model.end_token": preparation.get("end_token"),
    }
    return {name: value for name, value in settings.items() if value is not None}


def check_same_preparation(data: Any, argument: str, max_length: int, trained: Mapping[str, Any]) -> None:
    """Raise ConfigError if rows were prepared with another template or end token than the rows to train on."""
    for name, value in prepared_settings(data, argument, max_length).items():
        if name != "data_format.name" and value != trained.get(name, value):
            raise ConfigError(
                f"{argument} was prepared with {value!r}, but train_ds with {trained[name]!r}: prepare both by the "
                f"same AngleDataTokenizer."
            )
