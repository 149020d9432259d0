"""What goes wrong outside this code: one sentence each, naming the setting, the value and the way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ConfigError(ValueError):
    """A setting, or two settings together, that cannot work."""


class DataError(ValueError):
    """Data that cannot be read, or rows that cannot be trained on."""


class TrainingError(RuntimeError):
    """A run that must stop: its loss is no number any more, or its folder cannot be trusted."""


class HubError(RuntimeError):
    """A model that the Hugging Face hub did not take. Whatever is on disk is as it was."""

    def __init__(self, message: str, score: float | None = None) -> None:
        """Say what went wrong, and the score of the run whose model it was, which is good all the same."""
        super().__init__(message)
        self.score = score


def nearest(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean X?" for the known name nearest to `name`, or "" when none is near."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {found[0]}?" if found else ""


def first_line(error: BaseException) -> str:
    """Return what an error of a library says in its first line, without the full stop; its type if it says nothing."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")
