"""Purposes: what rows are read for (training, validation, ...), and which settings messages about them name."""

from __future__ import annotations

from angle.config import SourceConfig

#: What train.py reads rows for, which is also the name of their settings (data.train, ...), with the default split.
DEFAULT_SPLITS = {
    "train": "train",
    "valid": "validation",
    "valid_sts": "validation",
    "valid_retrieval": "dev",
    "test": "test",
}

#: What evaluate.py reads rows for. Its settings have no group, so these are just the start of its messages.
TASKS, RUN_TEST_SET = "tasks", "the run's data.test"

#: What angle.mine and angle.embed read, which is also the name of their groups of settings.
MINED = ("rows", "corpus")


#: Purposes whose rows may have any format; those of all others are scored against labels.
ANY_FORMAT = ("train", "valid")


def purpose_of_source(name: str) -> str:
    """Return the purpose of the training rows of a source; one of several has a name."""
    return f"train.sources.{name}" if name else "train"


def default_split(purpose: str) -> str:
    """Return the split to read if none is given."""
    return "train" if purpose in MINED else DEFAULT_SPLITS.get(_role(purpose), "test")


def may_have_any_format(purpose: str) -> bool:
    """Return whether rows need not be pairs with labels."""
    return _role(purpose) in ANY_FORMAT


def is_of_a_run(purpose: str) -> bool:
    """Return whether train.py reads rows for it, so that they have settings below `data`."""
    return _role(purpose) in DEFAULT_SPLITS


def _role(purpose: str) -> str:
    """Return the purpose without the name of a source."""
    return purpose.split(".sources.")[0]


def setting_name(purpose: str, name: str = "") -> str:
    """Return what a user types to set where the rows come from, or another setting `name` of the same source."""
    if is_of_a_run(purpose):
        return f"data.{purpose}.{name}" if name else f"data.{purpose}"
    if purpose in MINED:
        return f"{purpose}.{name}" if name else purpose
    return name or purpose


def limit_name(purpose: str, name: str) -> str:
    """Return the setting in `angle.config.LimitsConfig`, as a user types it; one for all sources of a script."""
    return f"data.limits.{name}" if is_of_a_run(purpose) else f"limits.{name}"


def source_label(purpose: str, source: SourceConfig) -> str:
    """Return the start of a message about all rows of a source; evaluate.py may have several, so they are named."""
    return setting_name(purpose) if is_of_a_run(purpose) else f"{purpose}: {', '.join(source.names())}"
