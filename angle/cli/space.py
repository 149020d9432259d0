"""What the words of a sweep name: values, or intervals from which a search draws some."""

from __future__ import annotations

import math
from itertools import islice
from typing import TYPE_CHECKING, Any

from angle.errors import ConfigError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

#: Digits of a value that is drawn from an interval: more mean nothing, and make long names.
DIGITS = 4


def values_of(override: Any, at_most: int) -> list[str]:
    """Return the values that a word names, as they are typed, at most a number of them; of an interval its ends."""
    if override.is_interval_sweep():
        interval = override.value()
        return [f"{end:.0f}" if float(end).is_integer() else repr(end) for end in (interval.start, interval.end)]
    return list(islice(override.sweep_string_iterator(), at_most))


def check_interval(word: str, interval: Any, setting_type: type | None) -> None:
    """Raise ConfigError if a word gives an interval to a setting that is no number, or one that has nothing in it."""
    key, start, end = word.partition("=")[0], interval.start, interval.end
    if setting_type not in (int, float):
        raise ConfigError(f"{word} cannot work: only numbers have intervals; give the values, as {key}=a,b.")
    if not start < end:
        raise ConfigError(f"{word} cannot work: an interval goes from a number to a larger one.")
    if "log" in interval.tags and start <= 0:
        raise ConfigError(f"{word} cannot work: on a logarithmic scale an interval starts above 0.")
    if unknown := sorted(interval.tags - {"log"}):
        raise ConfigError(f"{word} cannot work: tag({unknown[0]}, ...) is not known; log is, for a logarithmic scale.")


def parsed_distribution(key: str, values: str, setting_type: type | None) -> BaseDistribution:
    """Return what Optuna draws the values of a setting from, for the part of a word behind "="."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return distribution(OverridesParser.create().parse_override(f"{key}={values}"), setting_type)


def distribution(override: Any, setting_type: type | None) -> BaseDistribution:
    """Return what Optuna draws the values of a setting from, for a word that names several."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    typed = override.value()
    if override.is_interval_sweep():
        is_int = setting_type is int or (isinstance(typed.start, int) and isinstance(typed.end, int))
        log = "log" in typed.tags
        if is_int:
            return IntDistribution(int(typed.start), int(typed.end), log=log)
        return FloatDistribution(float(typed.start), float(typed.end), log=log)
    values = list(override.sweep_string_iterator())
    if override.is_range_sweep() and not typed.shuffle and len(values) > 1:
        numbers, step = sorted(map(float, values)), abs(typed.step)
        if all(map(float.is_integer, numbers)) and isinstance(step, int):
            return IntDistribution(int(numbers[0]), int(numbers[-1]), step=step)
        return FloatDistribution(numbers[0], numbers[0] + step * (len(numbers) - 1), step=step)
    return CategoricalDistribution(values)


def typed_value(value: Any, distribution: BaseDistribution) -> str:
    """Return a value as it is typed: of a number few digits, unless that would leave its interval."""
    if not isinstance(value, float):
        return str(value)
    short = float(f"{value:.{DIGITS}g}")
    inside = getattr(distribution, "low", -math.inf) <= short <= getattr(distribution, "high", math.inf)
    return f"{short if inside else value:.{DIGITS if inside else 17}g}"
