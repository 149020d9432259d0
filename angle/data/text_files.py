"""Rows of text files: JSON lines, a JSON list, CSV and TSV, also compressed. No file can take more than bounded memory.

What a file hides is refused: keys that occur twice, a table written by columns, quotation marks that are never closed.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any

from angle.data.table import Request, Row, Table
from angle.errors import DataError, brief, listed

#: Leading rows of a stream that determine its columns: a JSON object may leave some out.
COLUMN_DETECTION_ROWS = 1000
#: Characters of a JSON list that are read at a time.
LIST_CHUNK = 2**20
#: Lines inside one cell of a CSV file that all read as rows, from which on a quotation mark was probably never closed.
SWALLOWED_LINES = 4


def json_table(path: Path, request: Request) -> Table:
    """Return the table of a file with one JSON object a line, or with one list of objects."""
    with explain_unreadable(path, request), _open_text(path) as file:
        is_list = file.read(1024).lstrip()[:1] == "["
    return _table(path, request, _json_list) if is_list else _table(path, request, _json_lines, unit="line")


def csv_table(path: Path, request: Request) -> Table:
    """Return the table of a file of cells separated by commas."""
    return _table(path, request, _csv_rows)


def tsv_table(path: Path, request: Request) -> Table:
    """Return the table of a file of cells separated by tabs.

    Such files are usually written without quoting, so a quotation mark is a character there.
    """
    return _table(path, request, _tsv_rows)


@dataclass(frozen=True)
class _TextFile:
    """A file that is being read."""

    path: Path
    request: Request
    columns: dict[str, None] = field(default_factory=dict)
    """Names of all columns seen so far, in their order."""
    used: set[str] = field(default_factory=set)
    """Those of them that can be used."""

    def lines(self, file: IO[str]) -> Iterator[tuple[int, str]]:
        """Yield the lines with their numbers, and each with its end, none longer than a row can be."""
        limit = self.request.limits.row_length
        number = 0
        while line := file.readline(limit + 1):
            number += 1
            if len(line) > limit:
                raise self.request.row_too_long(self.path, f"line {number}")
            yield number, line

    def add_columns(self, names: Iterable[str]) -> None:
        """Remember the names of columns."""
        new = [name for name in names if name not in self.columns]
        self.columns.update(dict.fromkeys(new))
        self.used.update(filter(self.request.is_used, new))
        if len(self.columns) > self.request.limits.columns:
            self.request.check_columns(self.path, tuple(self.columns))

    def error(self, text: str) -> DataError:
        """Return an error about the file."""
        return self.request.error(self.path, text)


#: Yields the numbered rows of a file that is opened anew.
RowReader = Callable[[_TextFile], Iterator[tuple[int, Row]]]


def _table(path: Path, request: Request, read: RowReader, unit: str = "row") -> Table:
    """Return the table of a text file; unless streaming, all of its rows are read at once."""
    text_rows = _TextRows(_TextFile(path, request), read)
    rows: Iterable[tuple[int, Row]] = text_rows if request.streaming else list(text_rows)
    has_rows = False
    for _ in islice(rows, COLUMN_DETECTION_ROWS):
        has_rows = True
    columns = tuple(text_rows.file.columns)
    if not (columns and has_rows):
        raise request.error(path, "is empty: it has no row.")
    return Table(str(path), columns, rows, unit)


@dataclass(frozen=True)
class _TextRows:
    """Numbered rows of a text file, which each iteration opens anew and reads only as far as needed."""

    file: _TextFile
    read: RowReader

    def __iter__(self) -> Iterator[tuple[int, Row]]:
        path, request = self.file.path, self.file.request
        before = file_state(path)
        with explain_unreadable(path, request):
            yield from self.read(self.file)
        if file_state(path) != before:
            raise request.error(path, "was written to while it was read: start again once it is complete.")


def file_state(path: Path) -> tuple[int, int, int]:
    """Return what tells whether a file was written to or replaced: its number, size and time of change."""
    status = os.stat(path)
    return status.st_ino, status.st_size, status.st_mtime_ns


@contextmanager
def explain_unreadable(path: Path, request: Request) -> Iterator[None]:
    """Turn the errors of a file that is not what its name says into DataError."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise request.error(
            path, f"is not written in UTF-8 ({error.reason}: {error.object[error.start]:#04x}); save it as UTF-8."
        ) from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise request.error(path, f"is not a complete gzip file: {str(error).rstrip('.')}.") from None
    except OSError as error:
        raise request.error(path, f"cannot be read: {error.strerror}.") from None


def _open_text(path: Path) -> IO[str]:
    opener: Callable[..., IO[str]] = gzip.open if path.suffix.lower() == ".gz" else open
    return opener(path, "rt", encoding="utf-8-sig", newline="")


class _RepeatedKeyError(ValueError):
    """An object that has a key twice, of which JSON parsers silently take one."""


def _parse_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    item = dict(pairs)
    if len(item) < len(pairs):
        names = [name for name, _ in pairs]
        raise _RepeatedKeyError(next(name for name in names if names.count(name) > 1))
    return item


_DECODER, _STRICT_DECODER = json.JSONDecoder(), json.JSONDecoder(object_pairs_hook=_parse_object)


def _decode(text: str, start: int) -> tuple[Any, int]:
    """Return the value that begins at `start`, and where it ends."""
    item, end = _DECODER.raw_decode(text, start)
    # The strict decoder costs half as much again. An object with as many colons behind quotes as keys has none twice.
    if isinstance(item, dict) and text.count('":', start, end) != len(item):
        _STRICT_DECODER.raw_decode(text, start)
    return item, end


def _json_error(file: _TextFile, error: Exception, line: int, column: int) -> DataError:
    """Return the error for a value that cannot be parsed, at this line and column of the file."""
    if isinstance(error, json.JSONDecodeError):
        return file.error(f"line {line} is not valid JSON: {error.msg} (column {column}).")
    if isinstance(error, _RepeatedKeyError):
        return file.error(f"line {line} has the key {brief(error.args[0])} twice in one object: leave one out.")
    if isinstance(error, RecursionError):
        return file.error(f"line {line} has brackets in brackets, too deep to be read.")
    return file.error(f"line {line} has a number of thousands of digits: write it as a text.")  # Python's limit


def _json_lines(file: _TextFile) -> Iterator[tuple[int, Row]]:
    only_item: Any = None
    rows = 0
    with _open_text(file.path) as text:
        for number, line in file.lines(text):
            if line.isspace():
                continue
            line = line.rstrip("\r\n")
            if rows == 0 and line.strip() == "{":
                raise file.error("has an object over several lines: write each row as one line, or all as one list.")
            try:
                item, end = _decode(line, 0 if line[0] == "{" else len(line) - len(line.lstrip()))
                if end < len(line) and line[end:].strip():
                    raise json.JSONDecodeError("Extra data", line, end)
            except (ValueError, RecursionError) as error:
                raise _json_error(file, error, number, getattr(error, "pos", 0) + 1) from None
            rows += 1
            only_item = item if rows == 1 else None
            yield number, _json_row(item, f"line {number}", file)
    if only_item and all(isinstance(cell, (dict, list)) for cell in only_item.values()):
        raise file.error(
            f"is one object that holds the whole table (its keys are {listed(tuple(only_item))}): write one object a "
            f"row, with pandas by to_json(path, orient='records', lines=True)."
        )


def _json_row(item: Any, location: str, file: _TextFile) -> Row:
    """Return the cells of a row that can be used."""
    if not isinstance(item, dict):
        raise file.error(f"{location} is not a JSON object with a name for each column: {json.dumps(item)[:60]}")
    if not item.keys() <= file.columns.keys():
        file.add_columns(item)
    used = file.used
    return item if used.issuperset(item) else {name: cell for name, cell in item.items() if name in used}


def _json_list(file: _TextFile) -> Iterator[tuple[int, Row]]:
    """Yield the objects of one list, which is read piece by piece."""
    with _open_text(file.path) as text:
        cursor = _Cursor(file, text)
        cursor.skip("[")
        number = 0
        separator = "," if cursor.peek() != "]" else cursor.skip("]")
        while separator == ",":
            number += 1
            yield number, _json_row(cursor.value(number), f"row {number}", file)
            separator = cursor.skip(",]")
        if cursor.peek():
            raise cursor.error("Extra data")


class _Cursor:
    """A position in a JSON text of which only a piece is in memory."""

    def __init__(self, file: _TextFile, text: IO[str]) -> None:
        self.file = file
        self.text = text
        self.piece = ""
        self.position = 0
        self.ended = False
        self.lines, self.column = 1, 1  # of the beginning of the piece

    def peek(self) -> str:
        """Return the next character that is no white space, "" at the end."""
        while (char := self.piece[self.position : self.position + 1]).isspace() or not (char or self.ended):
            some = self.piece[self.position : self.position + 256]
            self.position += len(some) - len(some.lstrip())
            if self.position == len(self.piece):
                self._read_on()
        return char

    def skip(self, allowed: str) -> str:
        """Return the next character that is no white space, which is one of `allowed`, and go on behind it."""
        char = self.peek()
        if not char or char not in allowed:
            raise self.error(f"Expecting {' or '.join(map(repr, allowed))}")
        self.position += 1
        return char

    def value(self, number: int) -> Any:
        """Return the value at the position, an item of a list."""
        self.peek()
        size, last_error = LIST_CHUNK, ""
        while True:
            try:
                item, self.position = _decode(self.piece, self.position)
                return item
            except (ValueError, RecursionError) as error:
                line, column = self._location(getattr(error, "pos", self.position))
                problem = _json_error(self.file, error, line, column)
            # The value may go on behind the piece, unless reading on did not change what is wrong with it.
            if self.ended or (str(problem) == last_error and "Unterminated string" not in last_error):
                raise problem
            if len(self.piece) - self.position > self.file.request.limits.row_length:
                raise self.file.request.row_too_long(self.file.path, f"row {number}")
            last_error = str(problem)
            self._read_on(size)
            size *= 2

    def error(self, text: str) -> DataError:
        """Return the error for what is at the position."""
        line, column = self._location(self.position)
        return self.file.error(f"line {line} is not valid JSON: {text} (column {column}).")

    def _read_on(self, size: int = LIST_CHUNK) -> None:
        self.lines, self.column = self._location(self.position)
        more = self.text.read(size)
        self.ended = not more
        self.piece = self.piece[self.position :] + more
        self.position = 0

    def _location(self, position: int) -> tuple[int, int]:
        """Return the line and column of a position in the piece."""
        newlines = self.piece.count("\n", 0, position)
        if not newlines:
            return self.lines, self.column + position
        return self.lines + newlines, position - self.piece.rfind("\n", 0, position)


def _csv_rows(file: _TextFile) -> Iterator[tuple[int, Row]]:
    # Strict, because csv would otherwise end a cell that is never closed with the file.
    return _separated_rows(file, strict=True)


def _tsv_rows(file: _TextFile) -> Iterator[tuple[int, Row]]:
    return _separated_rows(file, delimiter="\t", quoting=csv.QUOTE_NONE)


def _separated_rows(file: _TextFile, **dialect: Any) -> Iterator[tuple[int, Row]]:
    """Yield the rows below a header. Cells stay text as written: an NA or null in a sentence is a word."""
    csv.field_size_limit(file.request.limits.row_length)  # a cell may be a document
    number = 0
    with _open_text(file.path) as text:
        reader = csv.reader((line for _, line in file.lines(text)), **dialect)
        try:
            header = next(reader, [])
            file.request.check_columns(file.path, header)
            file.add_columns(header)
            used = [position for position, name in enumerate(header) if name in file.used]
            names = [header[position] for position in used]
            first_line = reader.line_num + 1
            for cells in reader:
                if not cells:
                    first_line = reader.line_num + 1
                    continue
                number += 1
                if len(cells) != len(header):
                    raise file.error(
                        f"row {number} has {len(cells):,} cells, but its header names {len(header):,} columns: "
                        f"{listed(header)}."
                    )
                if reader.line_num - first_line > SWALLOWED_LINES and _holds_rows(cells, dialect):
                    raise file.error(
                        f"row {number} has a cell from line {first_line} to {reader.line_num} in which every line "
                        f"reads as a row: close its quotation mark, or double those that are part of a text."
                    )
                first_line = reader.line_num + 1
                yield number, dict(zip(names, [cells[position] for position in used], strict=True))
        except csv.Error as error:
            if "field limit" in str(error):
                raise file.request.row_too_long(file.path, f"row {number + 1}") from None
            raise file.error(
                f"row {number + 1} (from line {first_line if number else 1}) has a quotation mark that is not closed, "
                f"or not doubled inside a quoted cell ({error})."
            ) from None


def _holds_rows(cells: list[str], dialect: dict[str, Any]) -> bool:
    """Return whether some cell has many lines, of which each but the first and last has as many cells as the row."""
    for cell in cells:
        inner = cell.splitlines()[1:-1]
        if len(inner) >= SWALLOWED_LINES and len(cells) > 1:
            widths = {len(row) for row in csv.reader(inner, **{**dialect, "strict": False})}
            if widths == {len(cells)}:
                return True
    return False
