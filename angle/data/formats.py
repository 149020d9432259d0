"""Detect which of the formats A, B and C a table has, and suggest what to type if it has none."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from angle.data.purposes import may_have_any_format, setting_name
from angle.data.table import Table
from angle.errors import DataError, brief, listed
from angle.structures import FORMATS, DataFormat

#: Names of delimiters between cells, to recognise files whose names do not match their contents.
DELIMITER_NAMES = {";": "semicolons", "\t": "tabs", ",": "commas"}

#: Column names found in the wild for each of our columns, to suggest a renaming.
ALIASES = {
    "text1": ("sentence1", "sent1", "s1", "premise", "question1", "query1", "sentence_a", "text_a", "anchor"),
    "text2": ("sentence2", "sent2", "s2", "hypothesis", "question2", "query2", "sentence_b", "text_b"),
    "label": ("score", "labels", "similarity", "similarity_score", "gold_label", "relatedness_score", "gold"),
    "text": ("query", "anchor", "sentence", "question", "premise", "sent0", "text1", "sentence1"),
    "positive": ("pos", "entailment", "answer", "document", "passage", "sent1", "text2", "sentence2"),
    "negative": ("neg", "hard_negative", "contradiction", "hard_neg", "text3"),
}


def detect_format(columns: Sequence[str]) -> DataFormat | None:
    """Return the format of a table with these columns: A before B before C, None if none fits.

    The columns text and positive with a label, but without negative, fit none: what the label means is unknown.
    """
    have = set(columns)
    for data_format in FORMATS.values():
        ambiguous = data_format.name == "C" and "label" in have
        if data_format.fits(have) and not ambiguous:
            return data_format
    return None


def resolve_format(columns: Sequence[str], requested: str, purpose: str, source_name: str) -> DataFormat:
    """Return the format of a table, which must be `requested` unless that is "auto".

    Args:
        columns: the table's columns.
        requested: A, B, C or auto.
        purpose: one of `angle.data.purposes`, for messages.
        source_name: the table's name, for messages.

    Raises:
        DataError: columns of no format, or of another one; the message has the renaming to type.

    """
    detected = detect_format(columns)
    if requested == "auto":
        if detected is not None:
            return detected
        formats = "; ".join(f"{f.name}: {', '.join(f.columns)}" for f in FORMATS.values())
        matching = (name for delimiter, name in DELIMITER_NAMES.items() if delimiter in columns[0])
        delimiter_name = next(matching, None) if len(columns) == 1 else None
        if delimiter_name is not None:
            raise DataError(
                f"{setting_name(purpose)}: {source_name} has one column, {brief(columns[0])}, whose cells seem to be "
                f"separated by {delimiter_name}: a .csv file has commas, a .tsv file tabs."
            )
        raise DataError(
            f"{setting_name(purpose)}: {source_name} has the columns {listed(columns)}, which match no format "
            f"({formats}).{_rename_hint(columns, _nearest_format(columns), purpose)}"
        )
    data_format = FORMATS[requested]
    if data_format.fits(columns):
        return data_format
    message = (
        f"{setting_name(purpose)}: {source_name} has the columns {listed(columns)}"
        f"{f' (format {detected.name})' if detected else ''}, but format {requested} needs "
        f"{', '.join(data_format.columns)}."
    )
    if detected is not None and not may_have_any_format(purpose):
        raise DataError(f"{message} Only pairs with labels can be measured: give a file in format {requested}.")
    if detected is not None:
        to_type = f"loss=format_{detected.name.lower()}"
        if ".sources." in purpose:
            to_type = f"loss=auto {setting_name(purpose, 'format')}={detected.name}"
        raise DataError(f"{message} Type {to_type} to train on it as it is.")
    raise DataError(f"{message}{_rename_hint(columns, data_format, purpose)}")


def check_unused_columns(
    columns: Sequence[str],
    data_format: DataFormat,
    template_columns: Collection[str],
    requested: str,
    purpose: str,
    source_name: str,
) -> None:
    """Raise DataError if a column looks like one of the format, or has a number more than it, and is not used.

    Of a format that is requested by name, only its own columns count: it may be meant to leave out what others have.

    Args:
        columns: the table's columns.
        data_format: the table's format.
        template_columns: columns that the template uses.
        requested: A, B, C or auto.
        purpose: one of `angle.data.purposes`, for messages.
        source_name: the table's name, for messages.

    """
    role_of = {alias: role for role in data_format.columns for alias in (role, *ALIASES[role])}
    if requested == "auto":
        role_of = {role: role for role in ALIASES} | role_of
        if data_format.name == "C":  # which has all that B has but this
            role_of |= dict.fromkeys(ALIASES["negative"], "negative")
    used = {column for role in data_format.columns for column in data_format.columns_of(role, columns)}
    for column in columns:
        if column in used or column in template_columns:
            continue
        name = column.lower()
        stem, number = re.fullmatch(r"(.*?)[ _-]?(\d*)", name, re.DOTALL).groups()  # type: ignore[union-attr]
        role = role_of.get(name) or role_of.get(stem)
        if role is not None:
            if role == "negative" and number and name not in role_of:
                role = f"negative_{number}"
            setting = setting_name(purpose, "columns")
            raise DataError(
                f"{setting_name(purpose)}: {source_name} has the column {column}, which looks like {role} and is not "
                f"used in format {data_format.name}. To leave it out type '{setting}={{{column}: null}}', to use it "
                f"'{setting}={{{role}: {column}}}'."
            )


def _nearest_format(columns: Sequence[str]) -> DataFormat:
    """Return the format that most of the columns could be renamed to."""
    return max(FORMATS.values(), key=lambda f: (len(_guess_columns(columns, f)) / len(f.columns), len(f.columns)))


def _guess_columns(columns: Sequence[str], data_format: DataFormat) -> Mapping[str, str]:
    """Return {our name: existing name} for the columns whose names reveal their meaning."""
    by_lower_case = {name.lower(): name for name in columns}
    guessed: dict[str, str] = {}
    for column in data_format.columns:
        for name in (column, *ALIASES[column]):
            if name in by_lower_case and by_lower_case[name] not in guessed.values():
                guessed[column] = by_lower_case[name]
                break
    return guessed


def _rename_hint(columns: Sequence[str], data_format: DataFormat, purpose: str) -> str:
    if len(columns) < len(data_format.columns):
        return ""  # renaming cannot make up for a missing column
    guessed = _guess_columns(columns, data_format)
    pairs = ", ".join(
        f"{column}: {guessed.get(column, 'COLUMN')}" for column in data_format.columns if guessed.get(column) != column
    )
    return f" Rename them: '{setting_name(purpose, 'columns')}={{{pairs}}}'"


def common_format(
    tables: Iterable[Table], requested: str, purpose: str, template_columns: Callable[[Sequence[str]], tuple[str, ...]]
) -> DataFormat:
    """Return the format that all tables share, which is `requested` unless that is "auto".

    Args:
        tables: the tables.
        requested: A, B, C or auto.
        purpose: one of `angle.data.purposes`, for messages.
        template_columns: returns the further columns that the templates of roles (columns of rows) use.

    Raises:
        DataError: there is none, or a table has a column that is probably meant to be used and is not, or lacks one
            that the template uses.

    """
    first, *others = tables
    data_format = resolve_format(first.columns, requested, purpose, first.name)
    for table in others:
        is_auto = requested == "auto"
        if not (detect_format(table.columns) is data_format if is_auto else data_format.fits(table.columns)):
            raise DataError(
                f"{setting_name(purpose)}: {first.name} is format {data_format.name}, but {table.name} has the columns "
                f"{listed(table.columns)}: all sources of a list must have the same format."
            )
    used = template_columns(data_format.roles)
    for table in (first, *others):
        check_unused_columns(table.columns, data_format, used, requested, purpose, table.name)
        missing = [name for name in used if name not in table.columns]
        if missing:
            raise DataError(
                f"{setting_name(purpose)}: the template uses {{{missing[0]}}}, but {table.name} has the "
                f"columns {listed(table.columns)}."
            )
    return data_format
