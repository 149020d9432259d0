"""Purposes: what rows are read for (training, validation, ...), and which settings messages about them name."""

from __future__ import annotations

from angle.config import SourceConfig

#: What train.py reads rows for, which is also the name of their settings (data.train, ...), with the default split.
DEFAULT_SPLITS = {"train": "train", "valid": "validation", "valid_sts": "validation", "test": "test"}

#: What evaluate.py reads rows for. Its settings have no group, so these are just the start of its messages.
TASKS, RUN_TEST_SET = "tasks", "the run's data.test"


def default_split(purpose: str) -> str:
    """Return the split to read if none is given."""
    return DEFAULT_SPLITS.get(purpose, "test")


def setting_name(purpose: str, name: str = "") -> str:
    """Return what a user types to set where the rows come from, or another setting `name` of the same source."""
    if purpose in DEFAULT_SPLITS:
        return f"data.{purpose}.{name}" if name else f"data.{purpose}"
    return name or purpose


def limit_name(purpose: str, name: str) -> str:
    """Return the setting in `angle.config.LimitsConfig`, as a user types it; one for all sources of a script."""
    return f"data.limits.{name}" if purpose in DEFAULT_SPLITS else f"limits.{name}"


def source_label(purpose: str, source: SourceConfig) -> str:
    """Return the start of a message about all rows of a source; evaluate.py may have several, so they are named."""
    return setting_name(purpose) if purpose in DEFAULT_SPLITS else f"{purpose}: {', '.join(source.names())}"
