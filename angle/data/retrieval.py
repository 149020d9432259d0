"""Retrieval sets: queries, passages, and judgements of which passages answer which query.

Q queries, P passages, J judgements, N = Q + P texts, L tokens.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from angle.cache import cache_folder
from angle.config import LimitsConfig, RetrievalConfig, enumerate_words
from angle.data.cells import is_invisible, parse_label, text_problem
from angle.data.corpus import IntArray, RowTexts
from angle.data.distinct_texts import Tokenizer
from angle.data.language import check_language
from angle.data.purposes import limit_name, setting_name
from angle.data.retrieval_files import COLUMNS, Part, open_part
from angle.data.table import Row, Table
from angle.data.token_cache import cached_tokens
from angle.errors import DataError, brief
from angle.structures import DataFormat, Tokens, concatenate

#: A row is a query with a passage that answers it. No table has this shape, so it is not among the formats of rows.
RETRIEVAL = DataFormat("retrieval", ("query", "document"), labelled=False)


@dataclass(frozen=True)
class RetrievalSet:
    """Q queries, each with at least one relevant passage, and P passages to find these among."""

    tokens: Tokens
    """N texts: the queries, then the passages."""
    query_ids: tuple[str, ...]
    passage_ids: tuple[str, ...]
    """In descending order: of passages that are equally near to a query, trec_eval ranks the one with the later id
    first, so the lower index wins a tie."""
    query: IntArray
    """(J,): the query of each judgement, in ascending order."""
    passage: IntArray
    """(J,): its passage."""
    grade: npt.NDArray[np.float32]
    """(J,): how relevant the passage is; above 0."""
    left_out: Mapping[str, int]
    """What was not read, by its kind, in words."""
    fingerprint: str
    """Hash of texts, ids and judgements, before tokenisation."""
    unknown: float
    """Fraction of tokens that stand for what the vocabulary does not have."""
    format: DataFormat = RETRIEVAL

    def __len__(self) -> int:
        return len(self.query_ids)

    @cached_property
    def first_judgement(self) -> IntArray:
        """(Q + 1,): where the judgements of each query begin, and where the last ones end."""
        return np.searchsorted(self.query, np.arange(len(self) + 1))

    def note(self, name: str) -> str | None:
        """Return what to say of what was left out; None if all was read."""
        counts = [f"{count:,} {kind}" for kind, count in self.left_out.items()]
        return f"{name} is measured without {enumerate_words(counts)}" if counts else None

    def draw_texts(self, rows: IntArray, seed: int = 0, epoch: int = 0) -> RowTexts:
        """Return queries, each with its most relevant passage, as indices into `tokens`. Nothing is drawn."""
        order = np.lexsort((self.passage, -self.grade, self.query))
        best = self.passage[order][self.first_judgement[rows]]
        nothing = np.empty(0, np.int64)
        return RowTexts(np.stack([rows, len(self) + best], axis=1), nothing, nothing)


def load_retrieval_set(
    source: RetrievalConfig, purpose: str, tokenizer: Tokenizer, limits: LimitsConfig | None = None
) -> RetrievalSet:
    """Read, check and tokenise queries, passages and judgements.

    Queries without a relevant passage, and passages without a visible character that nobody has judged relevant, are
    left out: nothing could be found for the ones, and the others cannot be embedded.

    Raises:
        DataError: anything wrong with the data.

    """
    limits = limits or LimitsConfig()
    assert source.name_or_path is not None
    check_templates(tokenizer, setting_name(purpose))
    reader = _Reader(source, purpose, limits)
    judgements, unjudged = reader.judgements()
    relevant = {passage for graded in judgements.values() for passage in graded}
    queries = reader.texts("queries", judgements.keys())
    passages = reader.texts("corpus", relevant)
    reader.check_known(judgements, queries, passages)
    reader.left_out["queries without a relevant passage"] = unjudged
    query_ids = tuple(queries)
    passage_ids = tuple(sorted(passages, key=str.encode, reverse=True))
    index_of = {passage: index for index, passage in enumerate(passage_ids)}
    triples = [
        (number, index_of[passage], grade)
        for number, query in enumerate(query_ids)
        for passage, grade in judgements[query].items()
    ]
    query, passage, grade = zip(*triples, strict=True)
    texts = [list(queries.values()), [passages[name] for name in passage_ids]]
    arrays = np.array(query, np.int64), np.array(passage, np.int64), np.array(grade, np.float32)
    digest = hashlib.sha256()
    for part in (query_ids, passage_ids, *texts):
        digest.update("\0".join(part).encode() + b"\1")
    for array in arrays:
        digest.update(array.tobytes())
    try:
        tokens = concatenate(
            [cached_tokens_of(tokenizer, part, role) for part, role in zip(texts, RETRIEVAL.roles, strict=True)]
        )
        tokenizer.check_known(tokens)
    except ValueError as error:
        raise DataError(f"{setting_name(purpose)}: {str(error).removesuffix('.')}.") from None
    unknown = tokenizer.unknown_fraction(tokens)
    check_language(unknown, reader.label)
    left_out = {kind: count for kind, count in reader.left_out.items() if count}
    return RetrievalSet(tokens, query_ids, passage_ids, *arrays, left_out, digest.hexdigest(), unknown)


def check_templates(tokenizer: Tokenizer, setting: str) -> None:
    """Raise DataError if the template of queries or of passages uses more than their text.

    Args:
        tokenizer: has the templates.
        setting: that which asks for queries and passages, for the message.

    """
    for role in RETRIEVAL.roles:
        if columns := tokenizer.named(role).columns:
            raise DataError(
                f"{setting}: the model's template of a {role} uses {{{columns[0]}}}, but queries and passages have "
                f"nothing but their text: give one with {{text}} alone, 'model.prompts={{{role}: \"{{text}}\"}}'."
            )


def tokenize(tokenizer: Tokenizer, texts: Sequence[str], role: str | None) -> Tokens:
    """Return the tokens of texts that are all queries ("query"), all passages ("document"), or neither (None)."""
    return (tokenizer if role is None else tokenizer.named(role))(texts)


def cached_tokens_of(tokenizer: Tokenizer, texts: Sequence[str], role: str) -> Tokens:
    """Return what `tokenize` does, from the cache if it is there."""
    digest = hashlib.sha256(f"{tokenizer.named(role).fingerprint}/".encode())
    for text in texts:
        digest.update(f"{len(text)}/".encode() + text.encode())
    return cached_tokens(
        cache_folder("tokens") / digest.hexdigest(), lambda: tokenize(tokenizer, texts, role), len(texts)
    )


class _Reader:
    """Reads the three parts of a retrieval set, and stops at the first thing that is wrong."""

    def __init__(self, source: RetrievalConfig, purpose: str, limits: LimitsConfig) -> None:
        self.source = source
        self.purpose = purpose
        self.limits = limits
        self.label = f"{setting_name(purpose)}: {source.name_or_path}"
        self.left_out: dict[str, int] = {}
        #: Where the first judgement that names a query or a passage stands.
        self.named_at: dict[tuple[str, str], str] = {}

    def judgements(self) -> tuple[dict[str, dict[str, float]], int]:
        """Return the grades above 0 by query and passage, and how many queries have none of them."""
        grades: dict[str, dict[str, float]] = {}
        for table, number, row in self._rows("qrels"):
            query, passage = (self._id(table, number, row, column) for column in ("query-id", "corpus-id"))
            value = row.get("score", 1)
            grade = parse_label(value)
            if grade is None or not math.isfinite(grade):
                raise self._error(table, number, f"score is {brief(value)}, which is not a number")
            of_query = grades.setdefault(query, {})
            if of_query.setdefault(passage, grade) != grade:
                raise self._error(
                    table,
                    number,
                    f"judges {passage} for query {query} as {grade:g}, but an earlier row as {of_query[passage]:g}",
                )
            for kind, name in (("query-id", query), ("corpus-id", passage)):
                self.named_at.setdefault((kind, name), f"{table.name} {table.unit} {number}")
        relevant = {
            query: {passage: grade for passage, grade in graded.items() if grade > 0}
            for query, graded in grades.items()
            if any(grade > 0 for grade in graded.values())
        }
        if not relevant:
            raise DataError(
                f"{self.label} has no judgement above 0, so nothing could be found: give a passage that answers a "
                f"query the score 1, or more."
            )
        return relevant, len(grades) - len(relevant)

    def texts(self, part: Part, needed: Container[str]) -> dict[str, str]:
        """Return the texts of queries that are `needed`, or of all passages, by their ids."""
        texts: dict[str, str] = {}
        ids: dict[str, int] = {}
        empty = 0
        for table, number, row in self._rows(part):
            name = self._id(table, number, row, "_id")
            if name in ids:
                raise self._error(table, number, f"_id is {name}, which is also that of {table.unit} {ids[name]}")
            ids[name] = number
            if part == "queries" and name not in needed:
                continue
            text = self._text(table, number, row)
            if is_invisible(text) and name not in needed:
                empty += 1
                continue
            limit = limit_name(self.purpose, "text_length")
            if problem := text_problem(text, self.limits.text_length, limit):
                raise self._error(table, number, f"text {problem[1]}")
            texts[name] = text
        if not ids:
            raise DataError(f"{self.label} has no {part}: its file is empty.")
        if empty:
            self.left_out["passages without a visible character"] = empty
        return texts

    def check_known(
        self, judgements: Mapping[str, Mapping[str, float]], queries: Mapping[str, str], passages: Mapping[str, str]
    ) -> None:
        """Raise DataError if a judgement names a query or a passage that there is not."""
        for query, graded in judgements.items():
            for kind, name, known, part in (
                ("query-id", query, queries, "queries"),
                *(("corpus-id", passage, passages, "corpus") for passage in graded),
            ):
                if name not in known:
                    raise DataError(
                        f"{setting_name(self.purpose)}: {self.named_at[kind, name]}: {kind} is {name}, which is none "
                        f"of the ids in {part}: give judgements of this corpus, or leave the row out."
                    )

    def _rows(self, part: Part) -> Iterator[tuple[Table, int, Row]]:
        for table in open_part(self.source, part, self.purpose, self.limits):
            missing = [name for name in COLUMNS[part].required if name not in table.columns]
            if missing:
                raise DataError(
                    f"{setting_name(self.purpose)}: {table.name} has the columns {', '.join(table.columns)}, but "
                    f"{part} need {', '.join(COLUMNS[part].required)}."
                )
            for number, row in table.rows:
                yield table, number, row

    def _id(self, table: Table, number: int, row: Row, column: str) -> str:
        value = row.get(column)
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str) or not value.strip():
            raise self._error(table, number, f"{column} is {brief(value)}, which is no id")
        return value

    def _text(self, table: Table, number: int, row: Row) -> str:
        """Return a text with its title, if it has one, before it."""
        title, text = row.get("title"), row.get("text")
        for column, value in (("title", title or ""), ("text", text)):
            if not isinstance(value, str):
                raise self._error(table, number, f"{column} is not a text but {brief(value)}")
        return f"{title or ''} {text}".strip()

    def _error(self, table: Table, number: int, text: str) -> DataError:
        return DataError(f"{setting_name(self.purpose)}: {table.name} {table.unit} {number}: {text}.")
