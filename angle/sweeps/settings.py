"""Jobs that differ in their seed alone are one setting, tried several times."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

#: The setting that makes no other setting of a job.
SEED = "train.seed"


class Scored(Protocol):
    """A job of a sweep."""

    @property
    def settings(self) -> dict[str, str]:
        """The settings in which the jobs differ, as they were typed."""

    @property
    def score(self) -> float | None:
        """Higher is better; None if nothing was measured."""


Job = TypeVar("Job", bound=Scored)


@dataclass(frozen=True)
class Setting(Generic[Job]):
    """A combination of values, and its jobs, which differ in their seed alone."""

    values: dict[str, str]
    jobs: list[Job]

    @property
    def name(self) -> str:
        """The values as they are typed."""
        return as_typed(self.values) or "all seeds"

    @property
    def scores(self) -> list[float]:
        """The jobs' scores."""
        return [job.score for job in self.jobs if job.score is not None]

    @property
    def mean(self) -> float | None:
        """Their mean, None without one."""
        return statistics.fmean(self.scores) if self.scores else None

    @property
    def deviation(self) -> float | None:
        """Their standard deviation, None of fewer than two."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else None


def by_setting(jobs: Sequence[Job]) -> list[Setting[Job]]:
    """Return the settings that jobs try, in the order of their first jobs."""
    found: dict[str, Setting[Job]] = {}
    for job in jobs:
        values = without_seed(job.settings)
        found.setdefault(as_typed(values), Setting(values, [])).jobs.append(job)
    return list(found.values())


def is_value(typed: str, value: object) -> bool:
    """Return whether what was typed for a setting is this value."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(typed) == value
        except ValueError:
            return False
    return typed in (str(value), json.dumps(value))


def value_as_typed(value: object) -> str:
    """Return a value as it is typed."""
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)


def without_seed(settings: dict[str, str]) -> dict[str, str]:
    """Return the settings of a job without its seed."""
    return {name: value for name, value in settings.items() if name != SEED}


def as_typed(settings: dict[str, str]) -> str:
    """Return settings as a part of a command line."""
    return " ".join(f"{name}={value}" for name, value in settings.items())
