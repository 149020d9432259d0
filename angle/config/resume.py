"""The settings of a resumed run: its own, but for those that cannot change what it learns."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from angle.config.build import Config, build_config
from angle.config.keys import flatten, unflatten
from angle.config.overrides import format_value
from angle.config.scripts import TrainConfig
from angle.errors import ConfigError

#: Settings, and groups of them, that may change when a run is resumed: they cannot change what is learned.
RESUME_MAY_CHANGE = (
    "tracking.",
    "hub.",
    "hparams.",
    "data.limits.",
    "train.resume",
    "train.output_dir",
    "train.logging_steps",
    "train.save_total_limit",
)


def config_diff(saved_config: Config, requested_config: Config) -> list[str]:
    """Return "setting: saved -> requested" for each setting that differs and affects what is learned."""
    old, new = flatten(saved_config), flatten(requested_config)
    return [
        _change(key, old[key], new[key])
        for key in sorted(old)
        if old[key] != new[key] and not key.startswith(RESUME_MAY_CHANGE)
    ]


def newly_decided(saved_config: Config, config: Config) -> list[str]:
    """Return "setting: null -> value" for each setting that the saved ones leave open and others do not."""
    old, new = flatten(saved_config), flatten(config)
    return [
        _change(key, None, value)
        for key, value in sorted(new.items())
        if value is not None and old.get(key) is None and not key.startswith(RESUME_MAY_CHANGE)
    ]


def _change(key: str, old: Any, new: Any) -> str:
    return f"{key}: {format_value(old)} -> {format_value(new)}"


def resume_config(
    saved_config: TrainConfig,
    requested_config: TrainConfig,
    first_requested_config: TrainConfig,
    explicit_keys: Collection[str] = (),
) -> TrainConfig:
    """Return the settings to resume with: the saved ones, updated from `requested_config` where they may change.

    Args:
        saved_config: the run's settings, fully resolved.
        requested_config: the settings requested for resuming; a default value counts only for a key in `explicit_keys`.
        first_requested_config: the settings requested when the run was started.
        explicit_keys: dotted keys of the settings that the command line sets, whatever their values.

    Raises:
        ConfigError: a setting that may not change was given another value.

    """
    default, saved_values, first_values = flatten(TrainConfig()), flatten(saved_config), flatten(first_requested_config)
    resumed = dict(saved_values)
    refused = []
    for key, value in flatten(requested_config).items():
        if value == default[key] and key not in explicit_keys:
            continue
        if key.startswith(RESUME_MAY_CHANGE):
            resumed[key] = value
        elif value not in (saved_values[key], first_values[key]):
            refused.append(_change(key, saved_values[key], value))
    if refused:
        raise ConfigError(
            f"train.resume={requested_config.train.resume} resumes the run with its own settings, and these would "
            f"change it: {'; '.join(refused)}. Leave them out, or start a new run."
        )
    return build_config(unflatten(resumed), TrainConfig)
