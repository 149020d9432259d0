"""Check rows one at a time, tokenise their distinct texts once, and record which row uses which text."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from angle.config import LimitsConfig, SourceConfig, label_name
from angle.data.cells import describe_non_text, is_invisible, is_missing, parse_label, text_problem
from angle.data.corpus import Corpus, IntArray
from angle.data.distinct_texts import DistinctTexts, Tokenizer, template_columns
from angle.data.purposes import limit_name, setting_name, source_label
from angle.data.table import Row, Table
from angle.errors import NAME_LENGTH, DataError, brief, listed
from angle.structures import NEGATIVE_COLUMN, DataFormat, Tokens

#: The largest label, as labels are stored in float32.
MAX_LABEL = float(np.finfo(np.float32).max)

#: Returns embeddings (N, K, D) of texts, of unit length; of texts that have roles, one for each that it tells apart.
GuideFunction = Callable[[Sequence[str], bool], npt.NDArray[np.float32]]


class CorpusBuilder:
    """Checks rows one at a time, and collects them and their problems until the corpus is built."""

    def __init__(
        self,
        data_format: DataFormat,
        source: SourceConfig,
        purpose: str,
        tokenizer: Tokenizer,
        limits: LimitsConfig,
        negatives: str,
        tables: Iterable[Table],
    ) -> None:
        """Start empty.

        Args:
            data_format: the format of all rows.
            source: where they come from, for checks and messages.
            purpose: one of `angle.data.purposes`, likewise.
            tokenizer: turns texts into tokens, and knows the template of each role.
            limits: how long a text may be.
            negatives: what a list of negatives means, see `angle.config.DataConfig`.
            tables: those whose rows may be added.

        """
        self.format = data_format
        self.text_length = limits.text_length
        self.source = source
        self.label_map = source.label_map
        self.purpose = purpose
        self.extra_columns = template_columns(tokenizer, data_format.roles)
        self._texts = DistinctTexts(tokenizer, data_format.roles)
        self._cell_texts: list[int] = []
        self._cell_sizes: list[int] = []
        self._labels: list[float] = []
        self._origins: dict[str, int] = {}
        self._table: Table | None = None  # that of the last row, whose origin is `_table_origin`
        self._table_origin: int | None = None
        # The columns of `_table` that hold texts, also by role, and how many texts a role has if each holds one.
        self._columns: tuple[str, ...] = ()
        self._columns_of_roles: list[list[str]] = []
        self._plain_sizes: list[int] = []
        self._draws_negatives = negatives == "draw"
        self._has_numbered_negatives = any(len(data_format.columns_of("negative", t.columns)) > 1 for t in tables)
        self._negatives_list: str | None = None  # where the first list of several negatives is
        self._origin: list[int] = []
        self._numbers: list[int] = []
        self._dropped = 0
        self._problems: dict[tuple[str, str, str], list[Any]] = {}
        self._label_names: list[str] = []  # labels that are no numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def add(self, table: Table, number: int, row: Row) -> None:
        """Add a row; a row with a problem is counted and left out."""
        label = self._label(table, number, row) if self.format.labelled else 0.0
        if label is None:
            return
        if table is not self._table:
            self._begin(table)
        cells = self._cells(table, number, row)
        extras = self._extras(table, number, row) if self.extra_columns else {}
        if cells is None or extras is None:
            return
        texts, sizes = cells
        templates = itertools.chain.from_iterable(map(itertools.repeat, self._texts.template_of_role, sizes))
        by_template = [[extras.get(name, "") for name in columns] for columns in self._texts.columns]
        for template, text in zip(templates, texts, strict=True):
            self._cell_texts.append(self._texts.add(template, text, by_template[template]))
        self._cell_sizes += sizes
        self._labels.append(label)
        origin = self._table_origin
        if origin is None:
            origin = self._table_origin = self._origins.setdefault(f"{table.name} {table.unit}", len(self._origins))
        self._origin.append(origin)
        self._numbers.append(number)

    def _begin(self, table: Table) -> None:
        """Prepare to add a table's rows."""
        self._table, self._table_origin = table, None
        self._columns_of_roles = [self.format.columns_of(role, table.columns) for role in self.format.roles]
        self._columns = tuple(itertools.chain.from_iterable(self._columns_of_roles))
        self._plain_sizes = [len(columns) for columns in self._columns_of_roles]

    def _cells(self, table: Table, number: int, row: Row) -> tuple[Sequence[str], Sequence[int]] | None:
        """Return the texts of a row, cell after cell, and how many each cell has; None if there is a problem."""
        values: list[Any] = [row.get(column) for column in self._columns]
        if self._are_plain(values):
            return values, self._plain_sizes
        cells = [self._cell(table, number, row, columns) for columns in self._columns_of_roles]
        if None in cells:
            return None
        return [text for cell in cells for text in cell or ()], [len(cell or ()) for cell in cells]

    def _are_plain(self, values: Sequence[Any]) -> bool:
        """Return whether these are texts, one a cell and without problems, as nearly all are: each by itself costs."""
        try:
            joined = "".join(values)
            encodable = joined.isascii() or bool(joined.encode())
        except (TypeError, UnicodeEncodeError):
            return False
        if not encodable or len(joined) > self.text_length:
            return False
        if joined.isprintable():  # of what nobody sees, only spaces are
            return all(text and not text.isspace() for text in values)
        return not any(map(is_invisible, values))

    def _cell(self, table: Table, number: int, row: Row, columns: Sequence[str]) -> Sequence[str] | None:
        """Return the texts of the columns of one role; of several columns, some may hold nothing."""
        values = {column: row.get(column) for column in columns}
        if len(columns) > 1:
            values = {column: value for column, value in values.items() if not is_missing(value)}
            if not values:
                self._report(table, number, columns[0], "no text", f"and {listed(columns[1:])} hold nothing")
                return None
        cell: list[Any] = []
        for column, value in values.items():
            texts: list[Any] = value if isinstance(value, list) else [value]
            if not texts:
                self._report(table, number, column, "empty list", "is an empty list")
                return None
            for text in texts:
                if problem := self._text_problem(text):
                    self._report(table, number, column, *problem)
                    return None
            if len(texts) > 1 and NEGATIVE_COLUMN.fullmatch(column):
                self._negatives_list = self._negatives_list or f"{table.name} {table.unit} {number}"
            cell += texts
        return cell

    def _extras(self, table: Table, number: int, row: Row) -> dict[str, str] | None:
        """Return what the additional columns hold; None if the template could not use one."""
        values = [row.get(name) for name in self.extra_columns]
        for name, value in zip(self.extra_columns, values, strict=True):
            may_be_used = isinstance(value, str) and not value.strip()  # unlike a text, it may be empty
            if not may_be_used and (problem := self._text_problem(value)):
                description = f"{problem[1]}, but the template uses it"
                self._report(table, number, name, "template", description)
                return None
        return dict(zip(self.extra_columns, map(str, values), strict=True))

    def _text_problem(self, value: object) -> tuple[str, str] | None:
        return text_problem(value, self.text_length, limit_name(self.purpose, "text_length"))

    def _label(self, table: Table, number: int, row: Row) -> float | None:
        value = row.get("label")
        if self.label_map:
            if label_name(value) not in self.label_map:
                known = listed(tuple(self.label_map))
                description = f"is {brief(value)}, which label_map does not name (it names {known})"
                self._report(table, number, "label", "not in label_map", description)
                return None
            mapped = self.label_map[label_name(value)]
            if mapped is None:
                self._dropped += 1
                return None
            return self._finite_label(table, number, mapped, f"is {value}, for which label_map has {mapped}")
        if value is None or (isinstance(value, str) and not value.strip()):
            problem, description = describe_non_text(value)
            self._report(table, number, "label", problem, f"is {description}")
            return None
        label = parse_label(value)
        if label is None:
            is_word = isinstance(value, (str, bool)) and len(str(value)) <= NAME_LENGTH
            if is_word and str(value) not in self._label_names and len(self._label_names) < 8:
                self._label_names.append(str(value))
            self._report(table, number, "label", "no number", f"is {brief(value)}, which is not a number")
            return None
        return self._finite_label(table, number, label, f"is {value if isinstance(value, str) else brief(value)}")

    def _finite_label(self, table: Table, number: int, label: float, description: str) -> float | None:
        if math.isnan(label) or abs(label) > MAX_LABEL:
            self._report(table, number, "label", "no finite number", f"{description}, which is not a finite number")
            return None
        return label

    def _report(self, table: Table, number: int, column: str, problem: str, description: str) -> None:
        # Problems of one kind share one key, whatever the value; the first one is shown.
        problem_entry = self._problems.setdefault(
            (table.name, column, problem),
            [0, f"{setting_name(self.purpose)}: {table.name} {table.unit} {number}: {column} {description}"],
        )
        problem_entry[0] += 1

    def check(self) -> None:
        """Raise DataError if rows had problems, showing the first one and how many there are of its kind."""
        if self._negatives_list and self._draws_negatives and self._has_numbered_negatives:
            raise DataError(
                f"{setting_name(self.purpose)}: {self._negatives_list} has a list of negatives beside other columns of "
                f"negatives, so one cannot be drawn from it: type data.negatives=all to use all of them, or give the "
                f"lists as the only column."
            )
        if self._problems:
            (*_, problem), (count, message) = next(iter(self._problems.items()))
            hint = ""
            if problem == "no number":
                numbers = ", ".join(f"{word}: NUMBER" for word in self._label_names)
                label_map = f"'{setting_name(self.purpose, 'label_map')}={{{numbers}}}'"
                hint = f"; give numbers, or map names: {label_map}" if numbers else "; give numbers"
            others = len(self._problems) - 1
            more = f", and {others} other kind{'s' if others > 1 else ''} of problem" if others else ""
            raise DataError(f"{message} ({count} such row{'s' if count > 1 else ''}{more}){hint}.")

    def build(self, *, cache: bool = True, hashes: bool = False, guide: GuideFunction | None = None) -> Corpus:
        """Return the corpus of all rows added.

        Args:
            cache: whether tokens are kept on disk.
            hashes: whether the corpus has hashes of its texts, to be compared with those of others.
            guide: a guide's embeddings of texts.

        Raises:
            DataError: rows with problems, or no rows.

        """
        self.check()
        if not self._numbers:
            dropped = f": label_map dropped all {self._dropped}" if self._dropped else ""
            raise DataError(f"{source_label(self.purpose, self.source)} has no usable rows{dropped}.")
        shape = (len(self._numbers), len(self.format.roles))
        cell_sizes, cell_texts, labels = arrays = self._arrays()
        texts_digest, digest = self._digests(*arrays)
        tokens = self._tokens(texts_digest, cache)
        return Corpus(
            format=self.format,
            tokens=tokens,
            equal_ids=self._texts.equal_ids(),
            cell_starts=(np.cumsum(cell_sizes) - cell_sizes).reshape(shape),
            cell_sizes=cell_sizes.reshape(shape),
            cell_texts=cell_texts,
            labels=labels,
            origins=tuple(self._origins),
            origin=np.array(self._origin, np.int32),
            numbers=np.array(self._numbers, np.int64),
            dropped=self._dropped,
            fingerprint=digest,
            unknown=self._texts.unknown_fraction(tokens),
            all_negatives=self.format.name == "B" and (self._has_numbered_negatives or not self._draws_negatives),
            guide_embeddings=None if guide is None else self._guide_embeddings(guide),
            text_hashes=self._texts.hashes() if hashes else None,
        )

    def fingerprint(self) -> str:
        """Return the fingerprint that the corpus of all rows added would have."""
        return self._digests(*self._arrays())[1]

    def _arrays(self) -> tuple[IntArray, IntArray, npt.NDArray[np.float32] | None]:
        labels = np.array(self._labels, np.float32) if self.format.labelled else None
        return np.array(self._cell_sizes, np.int64), np.array(self._cell_texts, np.int64), labels

    def _digests(self, *arrays: npt.NDArray[Any] | None) -> tuple[str, str]:
        """Return a hash of the distinct texts, and one of these arrays too."""
        digest = hashlib.sha256(self.format.name.encode())
        for part in self._texts.digest_parts():
            digest.update(part)
        texts_digest = digest.hexdigest()
        for array in arrays:
            digest.update(b"" if array is None else array.tobytes())
        return texts_digest, digest.hexdigest()

    def _guide_embeddings(self, guide: GuideFunction) -> npt.NDArray[np.float32]:
        texts, index = self._texts.texts()
        embeddings = guide(texts, not self.format.labelled)
        return embeddings if len(texts) == len(index) else embeddings[index]

    def _tokens(self, digest: str, cache: bool) -> Tokens:
        try:
            return self._texts.tokens(digest, cache=cache)
        except ValueError as error:
            raise DataError(f"{setting_name(self.purpose)}: {str(error).removesuffix('.')}.") from None
