"""Values that several groups share, and the checks behind their error messages."""

from __future__ import annotations

import dataclasses
import math
import os
from typing import Any, TypeVar

from angle.errors import ConfigError, did_you_mean

#: Files in a run folder that more than one package uses.
CONFIG_FILE, RUN_FILE = "config.yaml", "run.json"
#: Value of teacher.name_or_path for the student as it was before training.
SELF_TEACHER = "self"
FORMAT_NAMES = ("A", "B", "C")
DTYPES = ("float32", "bfloat16", "float16", "auto")


#: The last part of every setting that takes a path.
PATH_NAMES = ("name_or_path", "tokenizer_name_or_path", "adapter", "resume", "output_dir")

PathValue = TypeVar("PathValue")


def expand_home(setting: str, path: PathValue) -> PathValue:
    """Return a path, or each of a list, with the home folder in place of a leading ~, which shells leave behind a "=".

    Raises:
        ConfigError: there is no such user, so the path would be one in a folder called ~USER.

    """
    if isinstance(path, list):
        return type(path)(expand_home(setting, item) for item in path)
    if not isinstance(path, str) or not path.startswith("~"):
        return path
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise ConfigError(
            f"{setting}={path} names the home folder of no user: write the path out, or ./{path} for one of that name."
        )
    return type(path)(expanded)


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
