"""What a cell may hold: a text that can be tokenised, or a label that is a number."""

from __future__ import annotations

import math
from decimal import Decimal
from numbers import Real
from unicodedata import category

from angle.errors import brief

#: Categories of Unicode whose characters a reader does not see: control, format (zero width), and three of separators.
INVISIBLE = frozenset({"Cc", "Cf", "Zl", "Zp", "Zs"})


def describe_non_text(value: object) -> tuple[str, str]:
    """Return the kind of a value found where a text should be, and how a message describes it."""
    if value is None:
        return "null", "null"
    if isinstance(value, str):
        return "empty", "empty"
    return "no text", f"not a text but {brief(value)}"


def is_invisible(text: str) -> bool:
    """Return whether a text has no character that a reader sees; most tokenizers make no token of it."""
    return all(category(character) in INVISIBLE for character in text)


def is_missing(value: object) -> bool:
    """Return whether a cell holds nothing: a file with a column for each of several negatives may have such."""
    return value is None or value == [] or (isinstance(value, str) and not value.strip())


def text_problem(value: object, max_length: int, length_setting: str) -> tuple[str, str] | None:
    """Return the kind of problem with a cell that should be a text, and a description; None if there is none.

    Args:
        value: the cell; an empty text is a problem too.
        max_length: characters that it may have.
        length_setting: the name of the setting of `max_length`, for the description.

    """
    if not isinstance(value, str) or not value.strip():
        kind, description = describe_non_text(value)
        return kind, f"is {description}"
    if is_invisible(value):
        return "empty", f"has no visible character ({brief(value)})"
    if len(value) > max_length:
        return "too long", f"has {len(value):,} characters: split the text, or raise {length_setting}={max_length}"
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = brief(value[error.start])
        return "surrogate", f"has {half}, half of a character, which cannot be tokenised: write the whole or none of it"
    return None


def parse_label(value: object) -> float | None:
    """Return a label as a number, None if it is none: Python also takes 1_000, digits of other scripts and true."""
    if isinstance(value, str):
        is_number = value.isascii() and "_" not in value
    else:
        is_number = isinstance(value, (Real, Decimal)) and not isinstance(value, bool)
    try:
        return float(value) if is_number else None  # type: ignore[arg-type]
    except ValueError:
        return None
    except OverflowError:  # an integer of hundreds of digits
        return math.inf
