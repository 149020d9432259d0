"""Values that several groups share, and the checks behind their error messages."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from angle.errors import ConfigError, did_you_mean

#: Files in a run folder that more than one package uses.
CONFIG_FILE, RUN_FILE = "config.yaml", "run.json"
#: Value of teacher.name_or_path for the student as it was before training.
SELF_TEACHER = "self"
FORMAT_NAMES = ("A", "B", "C")
DTYPES = ("float32", "bfloat16", "float16", "auto")


def check_one_of(setting: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        hint = did_you_mean(str(value), allowed) or "."
        raise ConfigError(f"{setting}={value} is not known{hint} Choose one of: {', '.join(allowed)}.")


def check_at_least(setting: str, value: float | None, low: float, *, above: bool = False) -> None:
    if value is None:
        return
    if not math.isfinite(value) or value < low or (above and value == low):
        raise ConfigError(f"{setting}={value:g} cannot work: it must be {'above' if above else 'at least'} {low:g}.")


def refuse_fields_while_off(group: str, config: Any, example: str) -> None:
    if config.enabled:
        return
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if value != item.default:
            raise ConfigError(
                f"{group}.{item.name}={value} has no effect while {group} is off: add {example} or "
                f"{group}.enabled=true, or leave it out."
            )
