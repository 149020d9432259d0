"""Turn nested values of any origin into a validated schema; save and load it."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from angle.config.names import group_names, plain_type, setting_types, type_hints
from angle.config.overrides import format_value
from angle.config.scripts import ConvertConfig, EvaluateConfig, TrainConfig
from angle.errors import ConfigError, first_line, nearest

Config = TypeVar("Config", TrainConfig, EvaluateConfig, ConvertConfig)
#: What a setting of each type accepts, in words.
TYPE_NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    list: "a list, such as [a,b]",
    dict: "a mapping, such as {a: b}",
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
    plain = OmegaConf.to_container(source, resolve=True) if OmegaConf.is_config(source) else source
    if not isinstance(plain, Mapping):
        raise ConfigError(f"A configuration is a mapping of groups, not {type(source).__name__}.")
    for key in flatten_groups(plain, schema):
        if key in plain and "." in key:
            raise ConfigError(f"{key} must be written as a group and a name in it: {{{key.replace('.', ': {')}: ...")
        if key not in setting_types(schema):
            raise ConfigError(unknown_key(key, schema))
    try:
        built = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), dict(plain)))
    except OmegaConfBaseException:
        for key, value in flatten_groups(plain, schema).items():
            check_value(key, value, schema)
        raise
    assert isinstance(built, schema)
    return built


def check_value(key: str, value: Any, schema: type) -> None:
    """Raise ConfigError if `key`, which is an existing setting or an entry of one, does not accept `value`."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    known = setting_types(schema)
    name = key if key in known else key.rsplit(".", 1)[0]  # an entry of a mapping
    kind = known[name]
    if kind is dict and key == name and isinstance(value, Mapping):
        for entry, content in value.items():
            check_value(f"{key}.{entry}", content, schema)
        return
    try:
        OmegaConf.update(OmegaConf.structured(schema), key, value, force_add=key != name)
    except OmegaConfBaseException:
        if key != name:
            kind = plain_type(typing.get_args(type_hints(schema)[name])[1])
        raise ConfigError(f"{key}={format_value(value)} cannot work: it must be {TYPE_NAMES[kind]}.") from None


def flatten_groups(values: Mapping[Any, Any], schema: type, prefix: str = "") -> dict[str, Any]:
    """Return nested values by dotted name, flattened as deep as `schema` has groups.

    Raises:
        ConfigError: a group was given a value.

    """
    groups = group_names(schema)
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if name not in groups:
            flat[name] = value
        elif isinstance(value, Mapping):
            flat |= flatten_groups(value, schema, f"{name}.")
        else:
            raise ConfigError(group_given_a_value(name, value, schema))
    return flat


def group_given_a_value(group: str, value: Any, schema: type) -> str:
    """Return the error message for a group of settings that was given a single value."""
    fields = [name for name in setting_types(schema) if name.startswith(f"{group}.")]
    return f"{group}={format_value(value)} cannot work: {group} is a group of settings; it has: {', '.join(fields)}."


def unknown_key(key: str, schema: type) -> str:
    """Return the error message for a setting that does not exist, naming the nearest one that does."""
    known = list(setting_types(schema))
    *_, end = key.rsplit(".", 1)
    ends = {name: name.rsplit(".", 1)[-1] for name in known}
    same_end = [name for name in known if ends[name] == end]
    if not same_end and len(end) > 1:  # an acronym, such as lr for learning_rate
        same_end = [name for name in known if "".join(word[0] for word in ends[name].split("_")) == end]
    begun = [name for name in known if name.startswith(key)]
    hint = f"; did you mean {[*same_end, *begun][0]}?" if same_end or begun else nearest(key, known)
    if not hint:
        group = key.split(".", 1)[0]
        fields = [name for name in known if name.startswith(f"{group}.")]
        hint = f"; {group} has: {', '.join(fields)}." if fields else "; python train.py --help lists them all."
    return f"There is no setting {key}{hint}"


def save_config(config: TrainConfig, path: Path) -> None:
    """Write `config` as YAML."""
    from omegaconf import OmegaConf

    path.write_text(OmegaConf.to_yaml(OmegaConf.create(dataclasses.asdict(config))), encoding="utf-8")


def load_config(path: Path) -> TrainConfig:
    """Load a file that `save_config` wrote.

    Raises:
        ConfigError: the file is not such a configuration.

    """
    from omegaconf import OmegaConf
    from yaml import YAMLError

    try:
        content = OmegaConf.load(path)
    except (YAMLError, OSError) as error:
        raise ConfigError(f"{path} is no configuration: {first_line(error)}.") from None
    return build_config(content, TrainConfig)
