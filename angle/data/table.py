"""A source's rows, and what a reader is told of the request for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from angle.config import LimitsConfig
from angle.data.purposes import limit_name, setting_name
from angle.errors import DataError, brief

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """Rows of one source, read on demand, and how to refer to them."""

    name: str
    """The file, folder or hub name."""
    columns: tuple[str, ...]
    """Names of all columns, after renaming."""
    rows: Iterable[tuple[int, Row]]
    """Number of the row or line, counting from 1, and the row: its cells in the columns that can be used."""
    unit: str = "row"
    """What the numbers count: "row" or "line"."""


@dataclass(frozen=True)
class Request:
    """What a reader is asked for."""

    purpose: str
    """One of `angle.data.purposes`, for messages."""
    is_used: Callable[[str], bool]
    """Returns whether a column, by its name in the source, can be used. No others are decoded or kept."""
    limits: LimitsConfig
    streaming: bool = False
    """Whether to read rows as they are asked for, instead of all at once."""

    def error(self, path: Path | str, text: str) -> DataError:
        """Return an error about what is read."""
        return DataError(f"{setting_name(self.purpose)}: {path} {text}")

    def check_columns(self, path: Path | str, columns: Sequence[str]) -> None:
        """Raise DataError if there are too many columns, or two of one name."""
        if len(columns) > self.limits.columns:
            raise self.error(
                path,
                f"has more than {self.limits.columns:,} columns: is each row's content in its keys? "
                f"{limit_name(self.purpose, 'columns')} sets how many are read.",
            )
        name, count = Counter(columns).most_common(1)[0] if columns else ("", 0)
        if count > 1:
            raise self.error(path, f"has two columns named {brief(name)}: rename one of them.")

    def row_too_long(self, path: Path | str, location: str) -> DataError:
        """Return the error for a row that is longer than can be read."""
        limit = self.limits.row_length
        return self.error(
            path,
            f"{location} is longer than {limit:,} characters: write one row a line, or raise "
            f"{limit_name(self.purpose, 'row_length')}={limit}.",
        )
