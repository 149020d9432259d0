"""What goes wrong on the user's side: one sentence each, naming the setting, the value and the way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ConfigError(ValueError):
    """A setting, or two settings together, that cannot work."""


class DataError(ValueError):
    """Data that cannot be read, or rows that cannot be trained on."""


class TrainingError(RuntimeError):
    """A run that must stop: its loss is no number any more, or its folder cannot be trusted."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean X?" for the known name nearest to `name`, or "" when none is near."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {found[0]}?" if found else ""
