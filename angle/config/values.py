"""Values that several groups share, and the checks behind their error messages."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from angle.errors import ConfigError, did_you_mean

#: Files in a run folder that more than one package uses.
CONFIG_FILE, RUN_FILE, SWEEP_FILE = "config.yaml", "run.json", "sweep.json"
#: Value of teacher.name_or_path for the student as it was before training.
SELF_TEACHER = "self"
FORMAT_NAMES = ("A", "B", "C")
#: What chooses the best model on queries and passages.
RETRIEVAL_METRIC = "ndcg@10"
#: Bits that weights can be quantised to.
KBITS = (4, 8)
DTYPES = ("float32", "bfloat16", "float16", "auto")


#: The last part of every setting that takes a path.
PATH_NAMES = ("name_or_path", "tokenizer_name_or_path", "adapter", "resume", "output_dir")

#: The smallest and the largest number that float32, in which losses are computed, holds with all of its digits.
SMALLEST_FLOAT, LARGEST_FLOAT = 2.0**-126, 3.4e38
#: The largest whole number: one that torch, numpy and csv take, even a little more of it.
LARGEST_INT = 10**18

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


def check_representable(setting: str, value: object, *, is_float: bool = False) -> None:
    """Check what no setting can be: numbers that would become infinite or 0, and texts that are empty or no text.

    Args:
        setting: its name.
        value: what it was given; of a list, every item is checked.
        is_float: whether a text in it will be read as a number.

    Raises:
        ConfigError: it is one of these.

    """
    for item in _items(value):
        if isinstance(item, str) and is_float:
            try:
                item = float(item)
            except ValueError:  # what is no number is reported with the setting's type
                continue
        if isinstance(item, str):
            _check_text(setting, item)
        elif isinstance(item, float) and not (item == 0 or SMALLEST_FLOAT <= abs(item) <= LARGEST_FLOAT):
            raise ConfigError(
                f"{setting}={item:g} cannot work: it must be a finite number, between {SMALLEST_FLOAT:.0e} and "
                f"{LARGEST_FLOAT:.0e} (of either sign) or 0."
            )
        elif isinstance(item, int) and abs(item) > LARGEST_INT:
            raise ConfigError(f"{setting} cannot work with more than 18 digits: give a smaller number.")


def _items(value: object) -> Iterator[object]:
    if isinstance(value, Mapping):  # a column may be called "", and is no number of a setting's
        value = [number for number in value.values() if not isinstance(number, str)]
    yield from value if isinstance(value, list | tuple) else [value]


def _check_text(setting: str, text: str) -> None:
    if not text.strip():
        raise ConfigError(f"{setting}={text!r} is empty: leave the setting out, or give it a value.")
    if not is_text(text):
        raise ConfigError(f"{setting}={text!r} cannot work: it has characters that are no text; type it anew.")
    if setting.rpartition(".")[2] in (*PATH_NAMES, "tasks") and not is_name(text):
        raise ConfigError(f"{setting}={text[:60]}... is too long for the name of a file, a folder or a repository.")


def is_text(text: str) -> bool:
    """Return whether a string can be written to a file and given to the system."""
    try:
        return "\0" not in text and bool(text.encode())
    except UnicodeEncodeError:  # half of a character
        return False


def is_name(text: str) -> bool:
    """Return whether a text is short enough for a path."""
    return is_text(text) and all(len(part.encode()) <= 255 for part in text.split("/")) and len(text.encode()) < 4096


def declared(
    default: Any,
    *,
    choices: tuple[Any, ...] = (),
    or_index: bool = False,
    at_least: float | None = None,
    above: float | None = None,
) -> Any:
    """Return a field with its default and what else it may be, which `check_fields` checks, and --help and pages tell.

    Args:
        default: a value; None is always allowed where it is the default.
        choices: the values that it may have, or of a list, its items.
        or_index: whether it may be a whole number in place of a choice.
        at_least: the lowest number that it may be.
        above: what the number must be above.

    """
    bounds = {"choices": choices or None, "or_index": or_index or None, "at_least": at_least, "above": above}
    metadata = {name: bound for name, bound in bounds.items() if bound is not None}
    return dataclasses.field(default=default, metadata=metadata)


def check_fields(group: str, config: Any) -> None:
    """Check the fields of a group of settings that are `declared`; the group "" is that of the settings without one.

    Raises:
        ConfigError: a value is not what its field may be.

    """
    for item in dataclasses.fields(config):
        setting, value = f"{group}.{item.name}".lstrip("."), getattr(config, item.name)
        if value is None or not item.metadata:
            continue
        is_index = "or_index" in item.metadata and str(value).isdecimal()
        if (choices := item.metadata.get("choices")) and not is_index:
            for choice in value if isinstance(value, list) else [value]:
                check_one_of(setting, choice, choices)
        for name in ("at_least", "above"):
            if (bound := item.metadata.get(name)) is not None:
                check_at_least(setting, value, bound, above=name == "above")


def check_one_of(setting: str, value: object, allowed: tuple[Any, ...]) -> None:
    if value not in allowed:
        names = list(map(str, allowed))
        hint = did_you_mean(str(value), names) or "."
        raise ConfigError(f"{setting}={value} is not known{hint} Choose one of: {', '.join(names)}.")


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
        make = item.default_factory
        if value != (item.default if make is dataclasses.MISSING else make()):
            raise ConfigError(
                f"{group}.{item.name}={value} has no effect while {group} is off: add {example} or "
                f"{group}.enabled=true, or leave it out."
            )
