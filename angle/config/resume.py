"""Which settings a resumed run takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from angle.config.build import Config, build_config
from angle.config.names import flatten
from angle.config.overrides import format_value
from angle.config.scripts import TrainConfig
from angle.errors import ConfigError

#: Settings that may change when a run is resumed, because they cannot change what is learned.
RESUME_MAY_CHANGE = (
    "tracking.",
    "hub.",
    "train.resume",
    "train.output_dir",
    "train.logging_steps",
    "train.save_total_limit",
)


def config_diff(saved: Config, requested: Config) -> list[str]:
    """Return "setting: saved -> asked" for each setting that differs and affects what is learned."""
    old, new = flatten(saved), flatten(requested)
    return [
        f"{key}: {format_value(old[key])} -> {format_value(new[key])}"
        for key in sorted(old)
        if old[key] != new[key] and not key.startswith(RESUME_MAY_CHANGE)
    ]


def resume_config(
    saved: TrainConfig, requested: TrainConfig, started_with: TrainConfig, named: Collection[str] = ()
) -> TrainConfig:
    """Return the settings to resume with: the saved ones, updated from `requested` where they may change.

    Args:
        saved: the run's settings, fully resolved.
        requested: the settings requested now; a default value counts only if the setting was named.
        started_with: the settings requested when the run was started.
        named: dotted names of the settings that were requested, whatever their values.

    Raises:
        ConfigError: a setting that may not change was given another value.

    """
    default, now = flatten(TrainConfig()), flatten(requested)
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
            refused.append(f"{key}: {format_value(allowed[0][key])} -> {format_value(value)}")
    if refused:
        raise ConfigError(
            f"train.resume={requested.train.resume} goes on with the run's own settings, and these would change it: "
            f"{'; '.join(refused)}. Leave them out, or start a new run."
        )
    return build_config(result, TrainConfig)
