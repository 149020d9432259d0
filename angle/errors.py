"""Errors whose cause is outside this code: one sentence each, with the setting, its value and what to do instead."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable, Sequence

#: Characters of a message: about a screen of a terminal.
MESSAGE_LENGTH = 1500
#: Names in a list that a message shows, and characters of each.
LISTED_NAMES, NAME_LENGTH = 20, 60

_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = _BRIEF.maxlong = 80


class _SentenceError(Exception):
    """An error whose message is one line of at most a screen, whatever of a user's data stands in it."""

    def __str__(self) -> str:
        """Return the message; control characters are written as escapes, and of a long one the middle is left out."""
        text = super().__str__()
        if not text.isprintable():
            text = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
        if len(text) <= MESSAGE_LENGTH:
            return text
        half = MESSAGE_LENGTH // 2
        return f"{text[:half]} [...] {text[-half:]}"


class ConfigError(_SentenceError, ValueError):
    """A setting, or a combination of settings, that cannot work."""


class DataError(_SentenceError, ValueError):
    """Data that cannot be read, or rows that cannot be trained on."""


class TrainingError(_SentenceError, RuntimeError):
    """A run that must stop: its loss is no longer finite, or its folder cannot be trusted."""


class DiskError(TrainingError):
    """A file that cannot be written, because the disk is full."""


class StoppedError(KeyboardInterrupt):
    """A run that a signal has ended; a checkpoint has all of it. Like Ctrl-C, it is no error of a job's."""


class HubError(_SentenceError, RuntimeError):
    """A model that could not be pushed to the Hugging Face hub. Files on disk are unchanged."""

    def __init__(self, message: str, score: float | None = None) -> None:
        """Keep the message, and the score of the run that produced the model, which is still valid."""
        super().__init__(message)
        self.score = score


def brief(value: object) -> str:
    """Return a value as Python writes it, of a long one the beginning and the end."""
    return _BRIEF.repr(value)


def listed(names: Sequence[str]) -> str:
    """Return names with commas between them, of many the first ones and how many others there are."""
    shown = ", ".join(name if len(name) <= NAME_LENGTH else f"{name[:NAME_LENGTH]}..." for name in names[:LISTED_NAMES])
    return shown if len(names) <= LISTED_NAMES else f"{shown} and {len(names) - LISTED_NAMES:,} others"


def nearest_name(name: str, known: Iterable[str]) -> str | None:
    """Return the known name closest to `name`; None if none is close."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)), None)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean X?" for the known name closest to `name`, or "" if none is close."""
    nearest = nearest_name(name, known)
    return f"; did you mean {nearest}?" if nearest else ""


def is_failure(error: BaseException) -> bool:
    """Return whether a library has failed, in Python or in Rust, whose panics are no Exception; else it is an exit."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def first_line(error: BaseException) -> str:
    """Return a library's error message up to its first line's end, without the full stop; its type if it is empty.

    A line that ends in a colon only announces the next one.
    """
    if isinstance(error, KeyError):  # nothing but the key
        return f"{error} is missing or not known"
    lines = str(error).strip().splitlines() or [type(error).__name__]
    announced = lines[0].endswith(":") and len(lines) > 1
    return (f"{lines[0]} {lines[1].strip()}" if announced else lines[0]).rstrip(".")
