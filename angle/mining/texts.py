"""What is mined: queries with their known positives, and the distinct passages of a corpus, as texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from angle.config import LimitsConfig, SourceConfig
from angle.data.cells import is_missing, text_problem
from angle.data.formats import common_format
from angle.data.purposes import limit_name, setting_name, source_label
from angle.data.sources import open_tables
from angle.data.table import Row, Table
from angle.errors import DataError, listed

#: What is read, for messages: the groups of settings that say where from.
ROWS, CORPUS = "rows", "corpus"


@dataclass
class Texts:
    """Q distinct queries, P distinct passages, and the pairs of them that are known to fit."""

    queries: list[str] = field(default_factory=list)
    passages: list[str] = field(default_factory=list)
    positives: list[list[int]] = field(default_factory=list)
    """Of each query, its known positives: indices of passages."""
    repeated_rows: int = 0
    """Rows whose query and positive had been read before."""
    _query_index: dict[str, int] = field(default_factory=dict)
    _passage_index: dict[str, int] = field(default_factory=dict)

    def add_pair(self, query: str, positive: str) -> None:
        """Add a query and one of its positives."""
        number = self._query_index.setdefault(query, len(self.queries))
        if number == len(self.queries):
            self.queries.append(query)
            self.positives.append([])
        passage = self.add_passage(positive)
        if passage in self.positives[number]:
            self.repeated_rows += 1
        else:
            self.positives[number].append(passage)

    def add_passage(self, text: str) -> int:
        """Add a passage unless there is an equal one, and return its index."""
        index = self._passage_index.setdefault(text, len(self.passages))
        if index == len(self.passages):
            self.passages.append(text)
        return index

    def passage_of(self, text: str) -> int | None:
        """Return the index of the passage with this text; None if there is none."""
        return self._passage_index.get(text)


def read_texts(rows: SourceConfig, corpus: SourceConfig, limits: LimitsConfig) -> Texts:
    """Read and check rows and passages.

    The passages of a corpus come first, in its order, then those of the rows.

    Raises:
        DataError: anything wrong with the data.

    """
    texts = Texts()
    reader = _Reader(limits)
    if corpus.names():
        for passage in reader.passages(corpus):
            texts.add_passage(passage)
    for query, positives, negatives in reader.rows(rows):
        for positive in positives:
            texts.add_pair(query, positive)
        if not corpus.names():
            for negative in negatives:
                texts.add_passage(negative)
    if not texts.queries:
        raise DataError(f"{source_label(ROWS, rows)} has no rows.")
    return texts


class _Reader:
    """Reads texts, and stops at the first that cannot be used."""

    def __init__(self, limits: LimitsConfig) -> None:
        self.limits = limits

    def passages(self, source: SourceConfig) -> Iterator[str]:
        tables = open_tables(source, CORPUS, template_columns=("title",), limits=self.limits, streaming=True)
        for table in tables:
            if "text" not in table.columns:
                raise DataError(
                    f"{CORPUS}: {table.name} has the columns {listed(table.columns)}, but passages stand in a column "
                    f"text. Rename it: '{CORPUS}.columns={{text: COLUMN}}'"
                )
            for number, row in table.rows:
                (text,) = self._texts(CORPUS, table, number, row, "text", several=False)
                title = row.get("title")
                yield f"{title} {text}".strip() if isinstance(title, str) else text

    def rows(self, source: SourceConfig) -> Iterator[tuple[str, Sequence[str], Sequence[str]]]:
        """Yield the query, the positives and the negatives of each row."""
        tables = open_tables(source, ROWS, limits=self.limits, streaming=True)
        data_format = common_format(tables, "auto", ROWS, lambda _: ())
        if data_format.labelled:
            raise DataError(
                f"{source_label(ROWS, source)} has pairs with labels (format A), of which mining cannot tell the "
                f"positives: give rows with text and positive."
            )
        for table in tables:
            columns = data_format.columns_of("negative", table.columns) if "negative" in data_format.roles else []
            for number, row in table.rows:
                (query,) = self._texts(ROWS, table, number, row, "text", several=False)
                positives = self._texts(ROWS, table, number, row, "positive", several=True)
                given = [column for column in columns if len(columns) == 1 or not is_missing(row.get(column))]
                cells = [self._texts(ROWS, table, number, row, column, several=True) for column in given]
                yield query, positives, [text for cell in cells for text in cell]

    def _texts(self, purpose: str, table: Table, number: int, row: Row, column: str, *, several: bool) -> Sequence[str]:
        """Return the texts in a cell, of which there is one unless it may have `several`."""
        value: Any = row.get(column)
        texts = value if several and isinstance(value, list) else [value]
        for text in texts or [value]:
            problem = text_problem(text, self.limits.text_length, limit_name(purpose, "text_length"))
            if problem is not None:
                raise DataError(f"{setting_name(purpose)}: {table.name} {table.unit} {number}: {column} {problem[1]}.")
        return texts
