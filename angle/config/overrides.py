"""Settings as overrides of a command line, in Hydra's grammar."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from angle.config.keys import flatten
from angle.config.scripts import TrainConfig

#: Strings that need no quotes in Hydra's grammar ...
UNQUOTED = re.compile(r"[A-Za-z/][A-Za-z0-9_/.-]*")
#: ... except these, which it reads as values of other types.
RESERVED = ("null", "true", "false", "inf", "nan")


def format_value(value: Any) -> str:
    """Return a value as it is written on the command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {format_value(entry)}' for key, entry in value.items())}}}"
    if isinstance(value, list):
        return f"[{','.join(map(format_value, value))}]"
    return str(value)


def hydra_overrides(config: TrainConfig) -> list[str]:
    """Return the overrides that turn the defaults into `config` on train.py's command line."""
    default = flatten(TrainConfig())
    return [hydra_override(key, value) for key, value in flatten(config).items() if value != default[key]]


def hydra_override(key: str, value: Any) -> str:
    """Return the override that sets the setting `key` to `value`."""
    return f"{key}={_quote(value)}"


def _quote(value: Any) -> str:
    """Return a value as `format_value` does, quoted so that Hydra reads back the same value and type."""
    if isinstance(value, Mapping):
        keys = [re.sub(r"([\\()\[\]{}:=, \t])", r"\\\1", str(key)) for key in value]  # keys cannot be quoted
        return f"{{{', '.join(f'{key}: {_quote(entry)}' for key, entry in zip(keys, value.values(), strict=True))}}}"
    if isinstance(value, list):
        return f"[{','.join(map(_quote, value))}]"
    if isinstance(value, float) and value.is_integer():
        return f"{value:.0f}"
    if not isinstance(value, str) or (UNQUOTED.fullmatch(value) and value.lower() not in RESERVED):
        return format_value(value)
    from hydra.core.override_parser.types import Quote, QuotedString

    quoted: str = QuotedString(text=value, quote=Quote.double).with_quotes()
    return quoted
