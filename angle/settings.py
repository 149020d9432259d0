"""Settings by their dotted names: turn nested values of any origin into a validated schema, save and load it."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar

from angle.config import ConvertConfig, EvaluateConfig, TrainConfig
from angle.errors import ConfigError, first_line, nearest

Config = TypeVar("Config", TrainConfig, EvaluateConfig, ConvertConfig)

#: Settings that may change when a run is resumed, because they cannot change what is learned.
RESUME_MAY_CHANGE = (
    "tracking.",
    "hub.",
    "train.resume",
    "train.output_dir",
    "train.logging_steps",
    "train.save_total_limit",
)

#: Strings that need no quotes in Hydra's grammar, and the exceptions, which it reads as something else.
PLAIN, NOT_TEXT = re.compile(r"[A-Za-z/][A-Za-z0-9_/.-]*"), ("null", "true", "false", "inf", "nan")

#: What a setting of each type accepts, in words.
WANTED = {
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
    for key in leaves(plain, schema):
        if key in plain and "." in key:
            raise ConfigError(f"{key} must be written as a group and a name in it: {{{key.replace('.', ': {')}: ...")
        if key not in kinds(schema):
            raise ConfigError(unknown_key(key, schema))
    try:
        built = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), dict(plain)))
    except OmegaConfBaseException:
        for key, value in leaves(plain, schema).items():
            check_value(key, value, schema)
        raise
    assert isinstance(built, schema)
    return built


def check_value(key: str, value: Any, schema: type) -> None:
    """Raise ConfigError if `key`, which is an existing setting or an entry of one, does not accept `value`."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    known = kinds(schema)
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
            kind = _plain(typing.get_args(_hints(schema)[name])[1])
        raise ConfigError(f"{key}={written(value)} cannot work: it must be {WANTED[kind]}.") from None


def written(value: Any) -> str:
    """Return a value as it is written on the command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {written(content)}' for key, content in value.items())}}}"
    if isinstance(value, list):
        return f"[{','.join(map(written, value))}]"
    return str(value)


def leaves(values: Mapping[Any, Any], schema: type, prefix: str = "") -> dict[str, Any]:
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
            flat |= leaves(value, schema, f"{name}.")
        else:
            raise ConfigError(group_given_a_value(name, value, schema))
    return flat


def group_given_a_value(group: str, value: Any, schema: type) -> str:
    """Return the error message for a group of settings that was given a single value."""
    fields = [name for name in kinds(schema) if name.startswith(f"{group}.")]
    return f"{group}={written(value)} cannot work: {group} is a group of settings; it has: {', '.join(fields)}."


def unknown_key(key: str, schema: type) -> str:
    """Return the error message for a setting that does not exist, naming the nearest one that does."""
    known = list(kinds(schema))
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


def kinds(schema: type) -> dict[str, type]:
    """Return the type of every setting of `schema` by its dotted name."""
    return {name: _plain(hint) for name, hint in _hints(schema).items()}


def group_names(schema: type) -> set[str]:
    """Return the dotted names of all groups of settings of `schema`."""
    parts = [name.split(".")[:-1] for name in kinds(schema)]
    return {".".join(path[:end]) for path in parts for end in range(1, len(path) + 1)}


@cache
def _hints(schema: type) -> dict[str, Any]:
    return dict(_walk(schema, ""))


def _walk(schema: type, prefix: str) -> Iterator[tuple[str, Any]]:
    for key, hint in typing.get_type_hints(schema).items():
        if dataclasses.is_dataclass(hint):
            yield from _walk(typing.cast(type, hint), f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", hint


def _plain(hint: Any) -> type:
    """Return int for int | None, list for list[str], and so on."""
    if isinstance(hint, UnionType):
        hint = next(kind for kind in typing.get_args(hint) if kind is not type(None))
    plain: type = typing.get_origin(hint) or hint
    return plain


def difference(saved: Config, asked: Config) -> list[str]:
    """Return "setting: saved -> asked" for each setting that differs and affects what is learned."""
    old, new = flatten(saved), flatten(asked)
    return [
        f"{key}: {written(old[key])} -> {written(new[key])}"
        for key in sorted(old)
        if old[key] != new[key] and not key.startswith(RESUME_MAY_CHANGE)
    ]


def resumed(
    saved: TrainConfig, asked: TrainConfig, started_with: TrainConfig, named: Collection[str] = ()
) -> TrainConfig:
    """Return the settings to resume with: the saved ones, updated from `asked` where they may change.

    Args:
        saved: the run's settings, fully resolved.
        asked: the settings requested now; a default value counts only if the setting was named.
        started_with: the settings requested when the run was started.
        named: dotted names of the settings that were requested, whatever their values.

    Raises:
        ConfigError: a setting that may not change was given another value.

    """
    default, now = flatten(TrainConfig()), flatten(asked)
    allowed = (flatten(saved), flatten(started_with))
    result = dataclasses.asdict(saved)
    refused = []
    for key, value in now.items():
        if value == default[key] and key not in named:
            continue
        if key.startswith(RESUME_MAY_CHANGE):
            group, name = key.rsplit(".", 1)
            result[group][name] = value
        elif all(value != known[key] for known in allowed):
            refused.append(f"{key}: {written(allowed[0][key])} -> {written(value)}")
    if refused:
        raise ConfigError(
            f"train.resume={asked.train.resume} goes on with the run's own settings, and these would change it: "
            f"{'; '.join(refused)}. Leave them out, or start a new run."
        )
    return build_config(result, TrainConfig)


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Return a nested dataclass as {dotted name: value}."""
    flat: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            flat |= flatten(value, f"{prefix}{item.name}.")
        else:
            flat[f"{prefix}{item.name}"] = value
    return flat


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return {dotted name: value} as nested groups."""
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *groups, name = key.split(".")
        branch = tree
        for group in groups:
            branch = branch.setdefault(group, {})
        branch[name] = value
    return tree


def override_words(config: TrainConfig) -> list[str]:
    """Return the words, in Hydra's grammar, that turn the defaults into `config` on train.py's command line."""
    default = flatten(TrainConfig())
    return [override_word(key, value) for key, value in flatten(config).items() if value != default[key]]


def override_word(key: str, value: Any) -> str:
    """Return the word that sets a setting, in Hydra's grammar."""
    return f"{key}={_quoted(value)}"


def _quoted(value: Any) -> str:
    """Return a value as `written` does, but quoted so that Hydra reads back the same value and type."""
    if isinstance(value, Mapping):
        keys = [re.sub(r"([\\()\[\]{}:=, \t])", r"\\\1", str(key)) for key in value]  # keys cannot be quoted
        return f"{{{', '.join(f'{key}: {_quoted(entry)}' for key, entry in zip(keys, value.values(), strict=True))}}}"
    if isinstance(value, list):
        return f"[{','.join(map(_quoted, value))}]"
    if isinstance(value, float) and value.is_integer():
        return f"{value:.0f}"
    if not isinstance(value, str) or (PLAIN.fullmatch(value) and value.lower() not in NOT_TEXT):
        return written(value)
    from hydra.core.override_parser.types import Quote, QuotedString

    quoted: str = QuotedString(text=value, quote=Quote.double).with_quotes()
    return quoted


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
