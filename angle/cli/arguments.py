"""Check a command line before Hydra composes it, with clearer error messages than Hydra's."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from angle.cli.launchers import BASIC, LAUNCHER_GROUPS, check_installed
from angle.cli.search import check_optuna
from angle.cli.space import check_interval, values_of
from angle.config import TrainConfig
from angle.config.build import check_value, setting_meant, unknown_setting, value_for_group
from angle.config.keys import group_names, mapping_of, setting_types
from angle.config.overrides import format_value
from angle.config.values import PATH_NAMES, expand_home
from angle.errors import ConfigError, did_you_mean

#: The folder in conf/ that is not a group of presets: its files are for `accelerate launch`.
LAUNCH_FOLDER = "accelerate"
#: Groups of presets that every script has, though none of its settings is in them.
SWEEP_GROUPS = frozenset({"launcher"})
#: Groups of which several options can be chosen at once: tracking=[online,tensorboard].
MULTIPLE_CHOICE_GROUPS = ("tracking",)
#: Jobs of a sweep, at most: the settings of all are checked before the first, which takes seconds for so many.
MAX_JOBS = 1000
#: Settings of Hydra that take a path.
HYDRA_FOLDERS = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir")


def check_arguments(arguments: list[str], schema: type, conf: Path) -> list[str]:
    """Check the words of a command line, and return them in the form that Hydra accepts.

    Raises:
        ConfigError: a word sets nothing, a group has no such option, or a value has the wrong type.

    """
    from hydra._internal.utils import get_args_parser

    parsed, unknown = get_args_parser().parse_known_intermixed_args(arguments)
    if parsed.shell_completion:
        return arguments  # -sc install=bash: words to Hydra, which are no settings
    if unknown:
        key_of = {key.rsplit(".", 1)[-1]: key for key in setting_types(schema)}
        near = difflib.get_close_matches(unknown[0].strip("-").split("=")[0], key_of, n=1)
        hint = f"; did you mean {key_of[near[0]]}?" if near else "."
        raise ConfigError(f"{unknown[0]} is not a flag: a setting is written without dashes, as group.name=value{hint}")
    if parsed.experimental_rerun is not None:
        raise ConfigError("--experimental-rerun is not supported: python train.py train.resume=RUN resumes a run.")
    for flag in ("config_dir", "config_name", "config_path"):
        if (value := getattr(parsed, flag)) is not None:
            raise ConfigError(
                f"--{flag.replace('_', '-')}={value} is not supported: put the settings into conf/experiment/NAME.yaml "
                f"and type experiment=NAME."
            )
    topics = [word for word in parsed.overrides if parsed.help and "=" not in word]  # --help loss
    for topic in topics:
        _check_key(topic, schema, conf, is_entry=False)
    words = [word for word in parsed.overrides if word not in topics]
    overrides = topics + [_hydra_override(word, schema, conf, multirun=parsed.multirun) for word in words]
    flags = [word for word in arguments if word not in parsed.overrides]
    return [*flags, *overrides]  # Hydra accepts no flag between two settings


def _hydra_override(word: str, schema: type, conf: Path, *, multirun: bool) -> str:
    """Check a word, and return it as Hydra needs it: with ++ if it adds entries to a mapping."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Glob, OverrideType
    from hydra.errors import HydraException

    if "=" not in word and not word.startswith("~"):
        example = f"{word}=..." if word in setting_types(schema) else f"model.name_or_path={word}"
        raise ConfigError(f"{word} sets nothing: write name=value, for example {example}")
    parser = OverridesParser.create()
    word = _literal(word, schema)
    try:
        override = parser.parse_override(word)
    except HydraException:
        raise ConfigError(
            f"{word} is not a setting: write name=value, and quote values with spaces, braces or "
            f"commas, for example 'model.prompt=\"Query: {{text}}\"'."
        ) from None
    key = override.key_or_group
    _check_sweeping(key, override.value(), multirun=multirun)
    if key == "hydra" or key.startswith(("hydra.", "hydra/")):
        return word
    if isinstance(override.value(), Glob):
        return _hydra_override(
            f"{key}={_matching(word, key, override.value(), schema, conf)}", schema, conf, multirun=multirun
        )
    if override.package is not None:
        raise ConfigError(f"{word} cannot work: a group has one place only; write {key}={override.value()}.")
    values = [override.value()]
    if override.is_delete():
        values = []
    elif override.is_sweep_override():
        typed = values_of(override, MAX_JOBS + 1)
        if len(typed) > MAX_JOBS:
            raise ConfigError(f"{word} names more than {MAX_JOBS:,} values, each of which would be a job: give fewer.")
        values = [parser.parse_override(f"{key}={value}").value() for value in typed]
    types = setting_types(schema)
    sets_entries = types.get(key) is dict or mapping_of(key, schema) is not None
    _check_key(key, schema, conf, is_entry=sets_entries)
    if override.is_delete() and key in types:
        entry = f", or leave out one of its entries as ~{key}.NAME" if types[key] is dict else ""
        raise ConfigError(f"{word} cannot work, because a setting always has a value: write {key}=VALUE{entry}.")
    if override.is_interval_sweep():
        check_interval(word, override.value(), types.get(key))
    for value in values:
        _check_value(key, value, schema, conf)
    if override.is_sweep_override() and not multirun:
        raise ConfigError(f"{word} names several values: add -m to run a job for each, or write one.")
    return f"++{word}" if sets_entries and override.type is OverrideType.CHANGE else word


def _check_sweeping(key: str, value: Any, *, multirun: bool) -> None:
    """Raise ConfigError for what of Hydra's would not do here what it says, and for an extra that is not installed."""
    if key.startswith("hydra.sweeper") or (key == "hydra/sweeper" and value != "basic"):
        raise ConfigError(
            f"{key} is not supported: type -m and the values of each setting, such as loss.ibn_w=10,20, and for a "
            f"search hparams=optuna."
        )
    if key == "hydra.mode":
        raise ConfigError("hydra.mode is not supported: type -m to run a job for each combination of values.")
    if key in LAUNCHER_GROUPS:
        check_installed(key, value)
        if value not in ("none", BASIC) and not multirun:
            raise ConfigError(f"{key}={value} launches the jobs of a sweep: add -m, or leave it out.")
    if key == "hparams" and value != "none":
        check_optuna()


def _literal(word: str, schema: type) -> str:
    """Return a word that sets a path or a text, quoted if Hydra would read something else than what is typed.

    So paths may hold any character, and the revision 1e5 or the folder 2024_11_29 does not become a number.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Quote, QuotedString
    from hydra.errors import HydraException

    key, _, typed = word.partition("=")
    name = key.lstrip("+")
    is_path = name.rpartition(".")[2] in PATH_NAMES or name in HYDRA_FOLDERS
    if not (is_path or setting_types(schema).get(name) is str) or typed[:1] in ("", "'", '"'):
        return word
    text = expand_home(name, typed) if is_path else typed
    try:
        override = OverridesParser.create().parse_override(word)
    except HydraException:
        keep = not is_path
    else:
        value = override.value()
        one_path = is_path and (name in HYDRA_FOLDERS or setting_types(schema).get(name) is str)
        several = override.is_sweep_override() or (isinstance(value, (list, dict)) and not one_path)
        keep = value is None or str(value) == text or (several and not Path(text).exists())
    return word if keep else f"{key}={QuotedString(text=text, quote=Quote.single).with_quotes()}"


def _matching(word: str, key: str, glob: Any, schema: type, conf: Path) -> str:
    """Return the options of a group that a glob() selects, as a sweep writes them."""
    options = _options(conf, key) if key in _groups(schema, conf) else []
    selected = glob.filter(options)
    if not selected:
        known = f"{key} can be: {', '.join(options)}." if options else f"{key} is not a group of presets."
        raise ConfigError(f"{word} selects nothing: {known}")
    return ",".join(selected)


def _check_key(key: str, schema: type, conf: Path, *, is_entry: bool) -> None:
    """Raise ConfigError if `key` is neither a group, nor a setting, nor an entry of one."""
    presets = set(_groups(schema, conf))
    if is_entry or key in presets | group_names(schema) | setting_types(schema).keys():
        return
    is_group = "." not in key and setting_meant(key, schema) is None
    group = did_you_mean(key, presets) if is_group else ""
    raise ConfigError(f"There is no group {key}{group}" if group else unknown_setting(key, schema))


def _check_value(key: str, value: Any, schema: type, conf: Path) -> None:
    """Raise ConfigError if the group or setting `key` does not accept `value`."""
    if key in _groups(schema, conf):
        _check_options(key, value, conf)
    elif key not in group_names(schema):
        if not (isinstance(value, str) and "${" in value):  # an interpolation is resolved later
            check_value(key, value, schema)
    elif not isinstance(value, Mapping):  # a mapping sets some of the group's settings
        raise ConfigError(value_for_group(key, value, schema))


def _groups(schema: type, conf: Path) -> list[str]:
    """Return the groups of presets that a script has."""
    groups = {folder.name for folder in conf.iterdir() if folder.is_dir() and folder.name != LAUNCH_FOLDER}
    return sorted(groups if schema is TrainConfig else groups & (group_names(schema) | SWEEP_GROUPS))


def table_of_groups(schema: type, conf: Path) -> str:
    """Return a line per group with its options, for --help."""
    lines = (f"{group}: {', '.join(_options(conf, group))}" for group in _groups(schema, conf))
    return "\n".join(textwrap.fill(line, 80, subsequent_indent="  ", break_on_hyphens=False) for line in lines)


def _options(conf: Path, group: str) -> list[str]:
    return sorted(file.stem for file in (conf / group).glob("*.yaml"))


def _check_options(group: str, value: Any, conf: Path) -> None:
    """Raise ConfigError if a group has no such option, or, of several, if two set the same setting."""
    if group not in MULTIPLE_CHOICE_GROUPS or not isinstance(value, list):
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
        alternative = {
            "model": f" For any other: model.name_or_path={value}",
            "data": f" For your own: data=files data.train.name_or_path={value}",
        }
        raise ConfigError(
            f"{group}={format_value(value)} is not an option{did_you_mean(str(value), options) or '.'} "
            f"{group} can be: {', '.join(options)}.{alternative.get(group, '')}"
        )
