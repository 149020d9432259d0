"""Texts of any number, one a row, that are read in blocks and never held all at once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Container, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice, pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from angle.config import LimitsConfig, SourceConfig
from angle.data.cells import is_invisible, parse_label, text_problem
from angle.data.purposes import limit_name, setting_name
from angle.data.sources import file_states, open_tables
from angle.data.table import Table
from angle.data.text_files import COLUMN_DETECTION_ROWS
from angle.errors import DataError, brief, listed

#: The columns of a text, and of what its row is called elsewhere.
TEXT, ID = "text", "id"
#: What a block has at most: rows, and characters unless it is a single row.
BLOCK_ROWS, BLOCK_CHARACTERS = 1024, 2**24
#: The largest whole number that a column of a table holds.
MAX_ID = 2**63 - 1


class TextRow(NamedTuple):
    """One row."""

    text: str
    extras: Mapping[str, str]
    """What the further columns hold."""
    id: str | int | None


@dataclass(frozen=True)
class Survey:
    """What a first reading of all texts has found."""

    first_rows: npt.NDArray[np.int64]
    """(B + 1,): the first row of each of B blocks, counted from 0, and the number of rows."""
    fingerprint: str
    """Hash of all that was read."""

    @property
    def num_rows(self) -> int:
        """The number of rows of all blocks."""
        return int(self.first_rows[-1])


@dataclass
class TextSource:
    """Where texts are read from, anew for each reading."""

    source: SourceConfig
    """Names at least one table; each has a column `text`, see `with_text_column`."""
    purpose: str
    """One of `angle.data.purposes`, for messages."""
    limits: LimitsConfig
    extra_columns: tuple[str, ...] = ()
    """Columns that a template uses beside the text."""
    with_ids: bool = False
    """Whether the column `id` is read if there is one."""
    states: list[tuple[int, int, int]] = field(init=False)
    """What tells whether a file has changed."""

    def __post_init__(self) -> None:
        self.states = file_states(self.source)

    def tables(self) -> list[Table]:
        """Open and return the tables.

        Raises:
            DataError: one lacks a column.

        """
        wanted = (*self.extra_columns, ID) if self.with_ids else self.extra_columns
        tables = open_tables(self.source, self.purpose, template_columns=wanted, limits=self.limits, streaming=True)
        for table in tables:
            missing = [name for name in self.extra_columns if name not in table.columns]
            if missing:
                raise DataError(
                    f"{setting_name(self.purpose)}: the template uses {{{missing[0]}}}, but {table.name} has the "
                    f"columns {listed(table.columns)}."
                )
            if self.with_ids and (ID in table.columns) != (ID in tables[0].columns):
                raise DataError(
                    f"{setting_name(self.purpose)}: only one of {tables[0].name} and {table.name} has a column {ID}: "
                    f"give both one, or leave it out by '{setting_name(self.purpose, 'columns')}={{{ID}: null}}'."
                )
        return tables

    def survey(self, check_blank: Callable[[TextRow], object]) -> Survey:
        """Read and check all rows.

        Args:
            check_blank: called with rows whose text shows nothing; raises ValueError for one that has no embedding.

        Raises:
            DataError: anything wrong with the data.

        """
        digest, first_rows, rows, characters = hashlib.sha256(), [0], 0, 0
        id_kind: type | None = None
        for location, row in self._rows():
            length = len(row.text) + sum(map(len, row.extras.values()))
            if rows - first_rows[-1] == BLOCK_ROWS or (characters and characters + length > BLOCK_CHARACTERS):
                first_rows.append(rows)
                characters = 0
            rows += 1
            characters += length
            if is_invisible(row.text):
                try:
                    check_blank(row)
                except ValueError as error:
                    raise self._error(location, str(error).removesuffix(".")) from None
            id_kind = id_kind or type(row.id)
            if type(row.id) is not id_kind:
                raise self._error(
                    location, f"{ID} is {brief(row.id)}, but those before are of another kind: write all as texts"
                )
            for part in (row.text, *row.extras.values(), *(() if row.id is None else (str(row.id),))):
                encoded = part.encode()
                digest.update(b"%d/" % len(encoded))
                digest.update(encoded)
        return Survey(np.array([*first_rows, rows]), digest.hexdigest())

    def blocks(self, survey: Survey, wanted: Container[int]) -> Generator[tuple[int, list[TextRow]]]:
        """Yield the number and the rows of each wanted block, in order.

        Raises:
            DataError: the files have changed since this object was made.

        """
        with closing(self._rows()) as rows:
            for number, (first, end) in enumerate(pairwise(survey.first_rows.tolist())):
                if number not in wanted:
                    next(islice(rows, end - first, end - first), None)  # reads them
                    continue
                block = [row for _, row in islice(rows, end - first)]
                self._check_unchanged()
                if len(block) < end - first:
                    raise self._changed()
                yield number, block

    def _rows(self) -> Generator[tuple[tuple[Table, int], TextRow]]:
        """Yield all rows, each with where it stands."""
        names = (TEXT, *self.extra_columns)
        for table in self.tables():
            has_ids = self.with_ids and ID in table.columns
            for number, cells in table.rows:
                for name in names:
                    if (problem := self._problem(cells.get(name))) is not None:
                        original = self.source.columns.get(name) or name
                        raise self._error((table, number), f"{original} {problem}")
                extras = {name: cells[name] for name in self.extra_columns}
                identifier = self._id(table, number, cells.get(ID)) if has_ids else None
                yield (table, number), TextRow(cells[TEXT], extras, identifier)
        self._check_unchanged()

    def _id(self, table: Table, number: int, value: object) -> str | int:
        if isinstance(value, str) and self._problem(value) is None:
            return value
        if isinstance(value, int) and not isinstance(value, bool) and -MAX_ID <= value <= MAX_ID:
            return value
        raise self._error(
            (table, number),
            f"{ID} is {brief(value)}, which is no text and no whole number of 64 bits: to leave the column out, type "
            f"'{setting_name(self.purpose, 'columns')}={{{ID}: null}}'",
        )

    def _problem(self, value: object) -> str | None:
        """Return what is wrong with a cell that should be a text, which may be empty; None if nothing is."""
        problem = text_problem(value, self.limits.text_length, limit_name(self.purpose, "text_length"))
        return None if problem is None or problem[0] == "empty" else problem[1]

    def _check_unchanged(self) -> None:
        if file_states(self.source) != self.states:
            raise self._changed()

    def _changed(self) -> DataError:
        return DataError(
            f"{setting_name(self.purpose)}: {', '.join(self.source.names())} was written to in the meantime: start "
            f"again once it is complete."
        )

    def _error(self, location: tuple[Table, int], text: str) -> DataError:
        table, number = location
        return DataError(f"{setting_name(self.purpose)}: {table.name} {table.unit} {number}: {text}.")


def with_text_column(source: SourceConfig, purpose: str, limits: LimitsConfig) -> SourceConfig:
    """Return a source whose tables have a column `text`: its own, or else the only one that holds texts.

    Raises:
        DataError: there is none, or more than one.

    """
    tables = open_tables(source, purpose, limits=limits, streaming=True)
    without = [table for table in tables if TEXT not in table.columns]
    if not without:
        return source
    names = without[0].columns
    opened = open_tables(source, purpose, template_columns=names, limits=limits, streaming=True)
    table = next(table for table in opened if TEXT not in table.columns)
    rows = [cells for _, cells in islice(table.rows, COLUMN_DETECTION_ROWS)]
    found = [name for name in names if name != ID and _holds_texts([cells.get(name) for cells in rows])]
    setting = setting_name(purpose, "columns")
    if len(found) != 1:
        have = f"several columns of texts, {listed(found)}" if found else f"the columns {listed(names)}, none of texts"
        raise DataError(
            f"{setting_name(purpose)}: {table.name} has {have}: name the one to take, "
            f"'{setting}={{{TEXT}: {found[0] if found else 'COLUMN'}}}'."
        )
    (column,) = found
    others = {name: original for name, original in source.columns.items() if name != column}
    return replace(source, columns=others | {TEXT: source.columns.get(column, column)})


def _holds_texts(cells: list[object]) -> bool:
    """Return whether a column's cells are texts, as far as there are any, and not all of them numbers."""
    present = [cell for cell in cells if cell is not None]
    texts = [cell for cell in present if isinstance(cell, str)]
    return len(texts) == len(present) and any(cell.strip() and parse_label(cell) is None for cell in texts)
