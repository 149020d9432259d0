"""Settings as words of a command line, in Hydra's grammar."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from angle.config.names import flatten
from angle.config.scripts import TrainConfig

#: Strings that need no quotes in Hydra's grammar, and the exceptions, which it reads as something else.
PLAIN, NOT_TEXT = re.compile(r"[A-Za-z/][A-Za-z0-9_/.-]*"), ("null", "true", "false", "inf", "nan")


def format_value(value: Any) -> str:
    """Return a value as it is written on the command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {format_value(content)}' for key, content in value.items())}}}"
    if isinstance(value, list):
        return f"[{','.join(map(format_value, value))}]"
    return str(value)


def override_words(config: TrainConfig) -> list[str]:
    """Return the words, in Hydra's grammar, that turn the defaults into `config` on train.py's command line."""
    default = flatten(TrainConfig())
    return [override_word(key, value) for key, value in flatten(config).items() if value != default[key]]


def override_word(key: str, value: Any) -> str:
    """Return the word that sets a setting, in Hydra's grammar."""
    return f"{key}={_quoted(value)}"


def _quoted(value: Any) -> str:
    """Return a value as `format_value` does, but quoted so that Hydra reads back the same value and type."""
    if isinstance(value, Mapping):
        keys = [re.sub(r"([\\()\[\]{}:=, \t])", r"\\\1", str(key)) for key in value]  # keys cannot be quoted
        return f"{{{', '.join(f'{key}: {_quoted(entry)}' for key, entry in zip(keys, value.values(), strict=True))}}}"
    if isinstance(value, list):
        return f"[{','.join(map(_quoted, value))}]"
    if isinstance(value, float) and value.is_integer():
        return f"{value:.0f}"
    if not isinstance(value, str) or (PLAIN.fullmatch(value) and value.lower() not in NOT_TEXT):
        return format_value(value)
    from hydra.core.override_parser.types import Quote, QuotedString

    quoted: str = QuotedString(text=value, quote=Quote.double).with_quotes()
    return quoted
