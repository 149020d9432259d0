"""Detect which of the formats A, B and C a table has, and suggest what to type if it has none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from angle.data.roles import setting
from angle.errors import DataError
from angle.structures import FORMATS, DataFormat

#: Separators of cells, to recognise files whose names do not match their contents.
SIGNS = {";": "semicolons", "\t": "tabs", ",": "commas"}

#: Roles whose rows may have any format; all others are measured against labels.
TRAINED_ON = ("train", "valid")

#: Column names found in the wild for each of our columns, to suggest a renaming.
ALIASES = {
    "text1": ("sentence1", "sent1", "s1", "premise", "question1", "query1", "sentence_a", "text_a", "anchor"),
    "text2": ("sentence2", "sent2", "s2", "hypothesis", "question2", "query2", "sentence_b", "text_b"),
    "label": ("score", "labels", "similarity", "similarity_score", "gold_label", "relatedness_score", "gold"),
    "text": ("query", "anchor", "sentence", "question", "premise", "sent0", "text1", "sentence1"),
    "positive": ("pos", "entailment", "answer", "document", "passage", "sent1", "text2", "sentence2"),
    "negative": ("neg", "hard_negative", "contradiction", "hard_neg", "text3"),
}


def detect(columns: Sequence[str]) -> DataFormat | None:
    """Return the format of a table with these columns; A wins over B, B over C; None if none fits.

    The columns text and positive with a label, but without negative, fit none: the meaning of the label is unknown.
    """
    have = set(columns)
    for data_format in FORMATS.values():
        ambiguous = data_format.name == "C" and "label" in have
        if have.issuperset(data_format.columns) and not ambiguous:
            return data_format
    return None


def choose(columns: Sequence[str], wanted: str, role: str, where: str) -> DataFormat:
    """Return the format of a table, which must be `wanted` unless that is "auto".

    Raises:
        DataError: columns of no format, or of another one; the message has the renaming to type.

    """
    found = detect(columns)
    if wanted == "auto":
        if found is not None:
            return found
        formats = "; ".join(f"{f.name}: {', '.join(f.columns)}" for f in FORMATS.values())
        between = next((name for sign, name in SIGNS.items() if len(columns) == 1 and sign in columns[0]), None)
        if between is not None:
            raise DataError(
                f"{setting(role)}: {where} has one column, {columns[0]!r}, whose cells seem to stand between "
                f"{between}: a .csv file has commas, a .tsv file tabs."
            )
        raise DataError(
            f"{setting(role)}: {where} has the columns {', '.join(columns)}, which are no format ({formats})."
            f"{_rename(columns, _nearest_format(columns), role)}"
        )
    data_format = FORMATS[wanted]
    if set(columns).issuperset(data_format.columns):
        return data_format
    message = (
        f"{setting(role)}: {where} has the columns {', '.join(columns)}{f' (format {found.name})' if found else ''}, "
        f"but format {wanted} needs {', '.join(data_format.columns)}."
    )
    if found is not None and role not in TRAINED_ON:
        raise DataError(f"{message} Only pairs with labels can be measured: give a file in format {wanted}.")
    if found is not None:
        raise DataError(f"{message} Type loss=format_{found.name.lower()} to train on it as it is.")
    raise DataError(f"{message}{_rename(columns, data_format, role)}")


def _nearest_format(columns: Sequence[str]) -> DataFormat:
    """Return the format that most of the columns could be renamed to."""
    return max(FORMATS.values(), key=lambda f: (len(_guess(columns, f)) / len(f.columns), len(f.columns)))


def _guess(columns: Sequence[str], data_format: DataFormat) -> Mapping[str, str]:
    """Return wanted -> found for the columns whose names reveal their meaning."""
    lower = {name.lower(): name for name in columns}
    guess: dict[str, str] = {}
    for wanted in data_format.columns:
        for name in (wanted, *ALIASES[wanted]):
            if name in lower and lower[name] not in guess.values():
                guess[wanted] = lower[name]
                break
    return guess


def _rename(columns: Sequence[str], data_format: DataFormat, role: str) -> str:
    if len(columns) < len(data_format.columns):
        return ""  # renaming cannot make up for a missing column
    guess = _guess(columns, data_format)
    pairs = ", ".join(
        f"{wanted}: {guess.get(wanted, 'COLUMN')}" for wanted in data_format.columns if guess.get(wanted) != wanted
    )
    return f" Rename them: '{setting(role, 'columns')}={{{pairs}}}'"
