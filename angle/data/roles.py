"""What rows are read for, and the settings that messages about them name."""

from __future__ import annotations

from angle.config import SourceConfig

#: What train.py reads rows for, which is where its settings are: data.train, ... -> the split when none is given.
DEFAULT_SPLITS = {"train": "train", "valid": "validation", "valid_sts": "validation", "test": "test"}

#: What evaluate.py reads rows for. Its settings have no group, so these are just what its messages begin with.
TASKS, OWN_TEST_SET = "tasks", "the run's data.test"


def default_split(role: str) -> str:
    """Return the split that is read when none is given."""
    return DEFAULT_SPLITS.get(role, "test")


def setting(role: str, name: str = "") -> str:
    """Return how a person types where the rows of a role come from, or the setting `name` that goes with it."""
    if role in DEFAULT_SPLITS:
        return f"data.{role}.{name}" if name else f"data.{role}"
    return name or role


def whole(role: str, source: SourceConfig) -> str:
    """Return what a message about all rows of a source begins with; evaluate.py may have several, so it names them."""
    return setting(role) if role in DEFAULT_SPLITS else f"{role}: {', '.join(source.names())}"
