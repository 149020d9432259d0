"""Validate settings from any source against a schema; save and load them."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from angle.config.embedding import EmbedConfig
from angle.config.keys import (
    entry_type,
    flatten,
    group_names,
    mapping_of,
    runtime_type,
    setting_hints,
    setting_types,
    unflatten,
)
from angle.config.mining import MineConfig
from angle.config.overrides import format_value
from angle.config.scripts import ConvertConfig, EvaluateConfig, TrainConfig
from angle.config.values import check_representable
from angle.errors import ConfigError, first_line, nearest_name

Config = TypeVar("Config", TrainConfig, EvaluateConfig, ConvertConfig, MineConfig, EmbedConfig)
#: What a setting of each type accepts, for messages.
#: Settings, and groups of them, that are of one run, or of who runs it.
NOT_IN_PRESETS = ("hparams.", "hub.", "tracking.", "train.resume", "train.output_dir", "train.dry_run")
TYPE_NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    list: "a list, such as [a,b]",
    dict: "a mapping, such as {a: b}",
}
#: What other programs call a setting: names without a group that people type.
OTHER_NAMES = {
    "lr": ("train.learning_rate",),
    "seed": ("train.seed",),
    "bs": ("train.batch_size",),
    "resume": ("train.resume",),
    "resume_from_checkpoint": ("train.resume",),
    **dict.fromkeys(("name", "run_name", "output", "out", "save_dir"), ("train.output_dir", "output_dir")),
    **dict.fromkeys(("model_name", "model_name_or_path", "model_id"), ("model.name_or_path",)),
    **dict.fromkeys(("dataset", "train_file", "train_path"), ("data.train.name_or_path",)),
    **dict.fromkeys(("steps", "num_steps"), ("train.max_steps",)),
    **dict.fromkeys(("fp16", "bf16"), ("train.mixed_precision",)),
    "tau": ("loss.cosine_tau",),
    "max_len": ("model.max_length",),
    "project": ("tracking.project",),
    **dict.fromkeys(("wandb", "wandb_mode", "report_to"), ("tracking.mode",)),
}


def build_config(source: Mapping[str, Any] | Config | Any, schema: type[Config]) -> Config:
    """Return `source` (a mapping, an OmegaConf node or a dataclass) as a validated `schema`, with types converted.

    Raises:
        ConfigError: a key is unknown, or a value has the wrong type or cannot work.

    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if dataclasses.is_dataclass(source) and not isinstance(source, type):
        source = dataclasses.asdict(source)
    values = OmegaConf.to_container(source, resolve=True) if OmegaConf.is_config(source) else source
    if not isinstance(values, Mapping):
        raise ConfigError(f"A configuration is a mapping of groups, not {type(source).__name__}.")
    types = setting_types(schema)
    for key, value in flatten_groups(values, schema).items():
        if key in values and "." in key:
            raise ConfigError(f"{key} must be written as a group and a name in it: {{{key.replace('.', ': {')}: ...")
        if key not in types:
            raise ConfigError(unknown_setting(key, schema))
        check_representable(key, value, is_float=types[key] is float)
    try:
        config = OmegaConf.to_object(OmegaConf.merge(_schema_node(typing.cast(type, schema)), dict(values)))
    except OmegaConfBaseException:  # its messages name neither the setting as typed nor what is allowed
        for key, value in flatten_groups(values, schema).items():
            check_value(key, value, schema)
        raise
    assert isinstance(config, schema)
    return config


@cache
def _schema_node(schema: type) -> Any:
    """Return a schema with its defaults as OmegaConf has it; merging copies it."""
    from omegaconf import OmegaConf

    return OmegaConf.structured(schema)


def check_value(key: str, value: Any, schema: type, prefix: str = "") -> None:
    """Raise ConfigError if `key`, an existing setting or an entry of one that is a mapping, does not accept `value`.

    Args:
        key: its dotted key.
        value: what it is given.
        schema: the settings.
        prefix: what stands before the key in a message.

    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    types = setting_types(schema)
    setting = key if key in types else mapping_of(key, schema)
    if setting is None:
        raise ConfigError(unknown_setting(key, schema, prefix))
    expected, is_entry = types[setting], key != setting
    if expected is dict and not is_entry and isinstance(value, Mapping):
        for entry, entry_value in value.items():
            if not isinstance(entry, str) and entry_type(setting_hints(schema)[setting]) is not None:
                raise ConfigError(f"{prefix}{key}.{entry} cannot be named so: give it a name with a letter, or quotes.")
            check_value(f"{key}.{entry}", entry_value, schema, prefix)
        return
    entry_schema = entry_type(setting_hints(schema)[setting]) if is_entry else None
    if entry_schema is not None:
        name, _, own_key = key.removeprefix(f"{setting}.").partition(".")
        values = {own_key: value} if own_key else value
        if not isinstance(values, Mapping):
            raise ConfigError(
                f"{prefix}{key}={format_value(value)} cannot work: it has settings of its own, such as {prefix}{key}."
                f"{next(iter(setting_types(entry_schema)))}=..."
            )
        for own_setting, own_value in values.items():
            check_value(str(own_setting), own_value, entry_schema, f"{prefix}{setting}.{name}.")
        return
    try:
        change = {key.removeprefix(f"{setting}."): value} if is_entry else value
        OmegaConf.update(OmegaConf.structured(schema), setting, change, merge=False)
    except OmegaConfBaseException:
        if is_entry:
            _, entry_hint = typing.get_args(setting_hints(schema)[setting])
            expected = runtime_type(entry_hint)
        raise ConfigError(
            f"{prefix}{key}={format_value(value)} cannot work: it must be {TYPE_NAMES[expected]}."
        ) from None


def flatten_groups(values: Mapping[Any, Any], schema: type, prefix: str = "") -> dict[str, Any]:
    """Return nested values by dotted key, flattened only where `schema` has a group, so that mappings stay whole.

    Raises:
        ConfigError: a group was given a single value.

    """
    groups = group_names(schema)
    flat: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if key not in groups:
            flat[key] = value
        elif isinstance(value, Mapping):
            flat |= flatten_groups(value, schema, f"{key}.")
        else:
            raise ConfigError(value_for_group(key, value, schema))
    return flat


def value_for_group(group: str, value: Any, schema: type) -> str:
    """Return the error message for a group of settings that was given a single value."""
    settings, has = _settings_in(group, schema), "it has"
    if "name_or_path" in settings:
        has = f"type {group}.name_or_path={format_value(value)}, or another of these"
    return f"{group}={format_value(value)} cannot work: {group} is a group of settings; {has}: {', '.join(settings)}."


def setting_meant(key: str, schema: type) -> str | None:
    """Return the setting that people mean who type a name that other programs have; None if it is not such a name."""
    known = setting_types(schema)
    return next((setting for setting in OTHER_NAMES.get(key, ()) if setting in known), None)


def unknown_setting(key: str, schema: type, prefix: str = "") -> str:
    """Return the error message for a setting that does not exist, naming the nearest one that does.

    Args:
        key: what was typed.
        schema: the settings that there are.
        prefix: what stands before each of them.

    """
    keys = list(setting_types(schema))
    usual = setting_meant(key, schema)
    if usual is not None:
        return f"There is no setting {prefix}{key}; did you mean {prefix}{usual}?"
    name = key.rsplit(".", 1)[-1]
    names = {known: known.rsplit(".", 1)[-1] for known in keys}
    candidates = [known for known in keys if names[known] == name]
    if not candidates and len(name) > 1:  # an acronym, such as lr for learning_rate
        candidates = [known for known in keys if "".join(word[0] for word in names[known].split("_")) == name]
    candidates += [known for known in keys if known.startswith(key)]
    nearest = candidates[0] if candidates else nearest_name(key, keys)
    hint = f"; did you mean {prefix}{nearest}?" if nearest else ""
    if not hint and prefix:
        hint = f"; there are: {', '.join(keys)}."
    if not hint:
        group = key.split(".", 1)[0]
        settings = _settings_in(group, schema)
        hint = f"; {group} has: {', '.join(settings)}." if settings else "; python train.py --help lists them all."
    return f"There is no setting {prefix}{key}{hint}"


def _settings_in(group: str, schema: type) -> list[str]:
    return [key for key in setting_types(schema) if key.startswith(f"{group}.")]


def config_text(config: TrainConfig) -> str:
    """Return `config` as YAML."""
    return _yaml(dataclasses.asdict(config))


def preset_text(config: TrainConfig) -> str:
    """Return a preset of a run's settings, as they were requested: a file for conf/experiment/.

    It sets what differs from the defaults, but nothing that is of one run, or of who runs it.
    """
    default = flatten(TrainConfig())
    changed = {key: value for key, value in flatten(config).items() if value != default[key]}
    return "# @package _global_\n" + _yaml(
        unflatten({key: value for key, value in changed.items() if not key.startswith(NOT_IN_PRESETS)})
    )


def _yaml(values: dict[str, Any]) -> str:
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(values))


def load_config(path: Path) -> TrainConfig:
    """Load a file with the text of `config_text`.

    Raises:
        ConfigError: the file is not such a configuration.

    """
    from omegaconf import OmegaConf
    from yaml import YAMLError

    try:
        content = OmegaConf.load(path)
    except (YAMLError, OSError) as error:
        raise ConfigError(f"{path} is not a configuration: {first_line(error)}.") from None
    return build_config(content, TrainConfig)
