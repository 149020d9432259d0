"""Roles: what rows are read for, and which settings messages about them name."""

from __future__ import annotations

from angle.config import SourceConfig

#: What train.py reads rows for, also the name of their settings (data.train, ...) -> the default split.
DEFAULT_SPLITS = {"train": "train", "valid": "validation", "valid_sts": "validation", "test": "test"}

#: What evaluate.py reads rows for. Its settings have no group, so these are just the start of its messages.
TASKS, OWN_TEST_SET = "tasks", "the run's data.test"


def default_split(role: str) -> str:
    """Return the split to read if none is given."""
    return DEFAULT_SPLITS.get(role, "test")


def setting(role: str, name: str = "") -> str:
    """Return the setting, as a user types it, for where a role's rows come from, or the related setting `name`."""
    if role in DEFAULT_SPLITS:
        return f"data.{role}.{name}" if name else f"data.{role}"
    return name or role


def source_label(role: str, source: SourceConfig) -> str:
    """Return the start of a message about all rows of a source, naming it for evaluate.py, which may have several."""
    return setting(role) if role in DEFAULT_SPLITS else f"{role}: {', '.join(source.names())}"
