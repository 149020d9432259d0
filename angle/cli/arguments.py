"""Check the words of a command line before Hydra composes them, with clearer error messages than its own."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from angle.config import TrainConfig
from angle.config.build import check_value, group_given_a_value, unknown_key
from angle.config.names import group_names, setting_types
from angle.config.overrides import format_value
from angle.errors import ConfigError, nearest

#: The folder in conf/ that is not a group: its files are for `accelerate launch`.
NO_GROUP = "accelerate"
#: Groups of which several options can be chosen at once: tracking=[online,tensorboard].
MULTIPLE_CHOICE = ("tracking",)


def check_arguments(arguments: list[str], schema: type, conf: Path) -> list[str]:
    """Check the words of a command line before Hydra composes them, and return them in the form that Hydra accepts.

    Raises:
        ConfigError: a word sets nothing, a group has no such option, or a value has the wrong type.

    """
    from hydra._internal.utils import get_args_parser

    known, unknown = get_args_parser().parse_known_intermixed_args(arguments)
    if unknown:
        last_parts = {name.rsplit(".", 1)[-1]: name for name in setting_types(schema)}
        near = difflib.get_close_matches(unknown[0].strip("-").split("=")[0], last_parts, n=1)
        hint = f"; did you mean {last_parts[near[0]]}?" if near else "."
        raise ConfigError(f"{unknown[0]} is no flag: a setting is written without dashes, as group.name=value{hint}")
    words = [f"++{word}" if _check_word(word, schema, conf, many=known.multirun) else word for word in known.overrides]
    flags = [word for word in arguments if word not in known.overrides]
    return [*flags, *words]  # Hydra accepts no flag between two settings


def _check_word(word: str, schema: type, conf: Path, *, many: bool) -> bool:
    """Check a word, and return whether Hydra must be told that it adds entries to a mapping."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import OverrideType
    from hydra.errors import HydraException

    if "=" not in word and not word.startswith("~"):
        example = f"{word}=..." if word in setting_types(schema) else f"model.name_or_path={word}"
        raise ConfigError(f"{word} sets nothing: write name=value, for example {example}")
    parser = OverridesParser.create()
    try:
        override = parser.parse_override(word)
    except HydraException:
        raise ConfigError(
            f"{word} is no setting: write name=value, and quote values with spaces, braces or "
            f"commas, for example 'model.prompt=\"Query: {{text}}\"'."
        ) from None
    key = override.key_or_group
    if key == "hydra" or key.startswith(("hydra.", "hydra/")):
        return False
    if override.package is not None:
        raise ConfigError(f"{word} cannot work: a group has one place only; write {key}={override.value()}.")
    values = [override.value()]
    if override.is_delete():
        values = []
    elif override.is_sweep_override():
        values = [parser.parse_override(f"{key}={value}").value() for value in override.sweep_string_iterator()]
    groups = set(_groups(schema, conf))
    known = setting_types(schema)
    in_mapping = dict in (known.get(key), known.get(key.rpartition(".")[0]))
    if key not in groups | group_names(schema) | known.keys() and not in_mapping:
        group = nearest(key, groups) if "." not in key else ""
        raise ConfigError(f"There is no group {key}{group}" if group else unknown_key(key, schema))
    for value in values:
        if key in groups:
            _check_options(key, value, conf)
        elif key not in group_names(schema):
            if not (isinstance(value, str) and "${" in value):
                check_value(key, value, schema)
        elif not isinstance(value, Mapping):  # a mapping sets some of the group's settings
            raise ConfigError(group_given_a_value(key, value, schema))
    if override.is_sweep_override() and not many:
        raise ConfigError(f"{word} names several values: add -m to run a job for each, or write one.")
    return in_mapping and override.type is OverrideType.CHANGE


def _groups(schema: type, conf: Path) -> list[str]:
    """Return the groups of presets that a script has."""
    groups = {folder.name for folder in conf.iterdir() if folder.is_dir() and folder.name != NO_GROUP}
    return sorted(groups if schema is TrainConfig else groups & group_names(schema))


def table_of_groups(schema: type, conf: Path) -> str:
    return "\n".join(f"{group}: {', '.join(_options(conf, group))}" for group in _groups(schema, conf))


def _options(conf: Path, group: str) -> list[str]:
    return sorted(file.stem for file in (conf / group).glob("*.yaml"))


def _check_options(group: str, value: Any, conf: Path) -> None:
    """Raise ConfigError if a group has no such option, or, of several, if two set the same setting."""
    if group not in MULTIPLE_CHOICE or not isinstance(value, list):
        _check_option(group, value, conf)
        return
    import yaml

    set_by: dict[str, str] = {}
    for option in value:
        _check_option(group, option, conf)
        if option == "none" and len(value) > 1:
            raise ConfigError(
                f"{group}={format_value(value)} contradicts itself: leave none out, or type {group}=none."
            )
        for setting in yaml.safe_load((conf / group / f"{option}.yaml").read_text(encoding="utf-8")):
            if setting in set_by:
                raise ConfigError(
                    f"{group}={format_value(value)} contradicts itself: {set_by[setting]} and {option} both set "
                    f"{group}.{setting}; leave one of them out."
                )
            set_by[setting] = option


def _check_option(group: str, value: Any, conf: Path) -> None:
    options = _options(conf, group)
    if value not in options:
        other = {
            "model": f" For any other: model.name_or_path={value}",
            "data": f" For your own: data=files data.train.name_or_path={value}",
        }
        raise ConfigError(
            f"{group}={format_value(value)} is no option{nearest(str(value), options) or '.'} "
            f"{group} can be: {', '.join(options)}.{other.get(group, '')}"
        )
