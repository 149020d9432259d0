"""A hyperparameter sweep (-m): one job for each combination of the values on a command line."""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Collection, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

from angle.cli.arguments import MAX_JOBS, check_arguments
from angle.cli.budget import SEED, STEPS, BudgetSearch
from angle.cli.search import Search
from angle.cli.space import distribution, values_of
from angle.config import ConvertConfig, EmbedConfig, EvaluateConfig, MineConfig, TrainConfig
from angle.config.build import Config, build_config
from angle.config.keys import setting_types
from angle.config.record import read_config
from angle.distributed.environment import world_size
from angle.errors import ConfigError

#: The settings of any script.
AnyConfig = TrainConfig | EvaluateConfig | ConvertConfig | MineConfig | EmbedConfig
#: Maximum length of a job's folder name: file systems allow 255 bytes.
SLUG_LENGTH = 100


def swept_keys(words: Sequence[str]) -> set[str]:
    """Return the settings and groups that a command line gives several values; if there are none, all that it sets."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    overrides = OverridesParser.create().parse_overrides(list(words))
    swept = {override.key_or_group for override in overrides if override.is_sweep_override()}
    return swept or {override.key_or_group for override in overrides}


def select_overrides(words: Sequence[str], keys: Collection[str]) -> list[str]:
    """Return the overrides that set one of `keys`."""
    return [word for word in words if word.lstrip("+~").partition("=")[0] in keys]


def check_jobs(words: Sequence[str], schema: type[Config], name: str, conf: Path) -> list[list[str]]:
    """Compose the settings of every job up front, so that none fails on them after others have been trained.

    Returns:
        The words of each job, without those to Hydra.

    Raises:
        ConfigError: a job has a value that cannot work, contradictory settings, or the same folder as another job.

    """
    from hydra import initialize_config_dir
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    overrides = OverridesParser.create().parse_overrides(list(words))
    to_hydra = [str(override.input_line) for override in overrides if override.is_hydra_override()]
    overrides = [override for override in overrides if not override.is_hydra_override()]
    for override in overrides:
        if override.is_interval_sweep():
            raise ConfigError(
                f"{override.input_line} has no end of values to run: add hparams=optuna, which chooses some, or give "
                f"them, such as {override.key_or_group}=1,2,3."
            )
    count = math.prod(len(list(o.sweep_string_iterator())) for o in overrides if o.is_sweep_override())
    if count > MAX_JOBS:
        raise ConfigError(f"-m names {count:,} jobs, and one command runs at most {MAX_JOBS:,}: give fewer values.")
    (jobs,) = BasicSweeper.split_arguments(overrides, None)
    with initialize_config_dir(str(conf), version_base="1.3"):
        _check([to_hydra + job for job in jobs], schema, name)
    return jobs


def check_search(words: Sequence[str], name: str, conf: Path) -> Search | None:
    """Compose the settings of a search with every value and both ends of every interval, one setting at a time.

    Returns:
        The search; None if none is asked for.

    Raises:
        ConfigError: a value cannot work, or the command line cannot be searched with.

    """
    from hydra import compose, initialize_config_dir
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    parser = OverridesParser.create()
    overrides = parser.parse_overrides(list(words))
    to_hydra = [str(override.input_line) for override in overrides if override.is_hydra_override()]
    overrides = [override for override in overrides if not override.is_hydra_override()]
    fixed = [str(override.input_line) for override in overrides if not override.is_sweep_override()]
    varied = {override.key_or_group: override for override in overrides if override.is_sweep_override()}
    with initialize_config_dir(str(conf), version_base="1.3"):
        firsts = [_first(override) for override in varied.values()]
        group = compose(name, overrides=[*to_hydra, *fixed, *firsts]).hparams
        if not group.enabled:
            return None
        typed = {override.key_or_group for override in overrides}
        from_preset = {f"hparams.space.{key}": f"{key}={value}" for key, value in group.space.items()}
        for setting, word in from_preset.items():
            override = parser.parse_override(check_arguments(["-m", word], TrainConfig, conf)[1])
            if not override.is_sweep_override():
                raise ConfigError(f"{setting} names one value, so there is nothing to choose: write {word} instead.")
            if override.key_or_group not in typed:
                varied[override.key_or_group] = override
        if not varied and group.budget is None:
            raise ConfigError(
                "hparams=optuna has nothing to choose: give settings several values, such as loss.ibn_w=interval(1,50)."
            )
        base = {key: _first(override) for key, override in varied.items()}
        jobs = [
            [*to_hydra, *fixed, *(base | {key: word}).values()]
            for key, override in varied.items()
            for value in values_of(override, MAX_JOBS)
            if (word := f"{override.get_key_element()}={value}") != base[key]
        ]
        for config in _check([[*to_hydra, *fixed, *base.values()], *jobs], TrainConfig, name):
            _check_searchable(config, varied)
        others = [word for word in fixed if not word.startswith("hparams")]
        own = compose(name, overrides=[*to_hydra, *others])
    types = setting_types(TrainConfig)
    space = {key: distribution(override, types.get(key)) for key, override in varied.items()}
    hparams = build_config({"hparams": OmegaConf.to_container(group)}, TrainConfig).hparams
    if hparams.budget is None:
        return Search(hparams, fixed, space)
    of_stages = select_overrides(fixed, (STEPS, SEED))  # each job has its own
    common = [word for word in fixed if word not in of_stages]
    return BudgetSearch(hparams, common, space, frozenset(typed), build_config(own, TrainConfig))


def default_values(words: Sequence[str], swept: Collection[str], name: str, conf: Path) -> dict[str, Any]:
    """Return the values that settings have where no job of a sweep sets them; none if they have to be set.

    Args:
        words: the command line.
        swept: the settings and groups in which the jobs differ.
        name: of the configuration.
        conf: the folder of presets.

    """
    from hydra import compose, initialize_config_dir
    from omegaconf import open_dict
    from omegaconf.errors import InterpolationResolutionError

    common = [word for word in words if not select_overrides([word], swept)]
    with initialize_config_dir(str(conf), version_base="1.3"):
        composed = compose(name, overrides=common, return_hydra_config=True)
    choices = composed.hydra.runtime.choices
    with open_dict(composed):
        del composed["hydra"]
    try:
        config = build_config(composed, TrainConfig)
        return {key: choices[key] if key in choices else attrgetter(key)(config) for key in sorted(swept)}
    except (ConfigError, AttributeError, InterpolationResolutionError):
        return {}  # one has to be set, is the key of a mapping, or is known in a job only


def _first(override: Any) -> str:
    """Return the word that gives a setting the first of the values that another one names."""
    return f"{override.get_key_element()}={values_of(override, 1)[0]}"


def _check_searchable(config: TrainConfig, varied: Collection[str]) -> None:
    """Raise ConfigError if the jobs of a search, with these settings, could not be compared."""
    from angle.config import SAMPLE

    train, data = config.train, config.data
    for setting, wrong in {"train.dry_run=true": train.dry_run, f"train.resume={train.resume}": train.resume}.items():
        if wrong:
            raise ConfigError(f"hparams=optuna cannot work with {setting}, which trains no new model: leave one out.")
    for seed in ("train.seed", "data.seed"):
        if seed in varied:
            raise ConfigError(
                f"hparams=optuna cannot choose {seed}, of which it would take the luckiest: give one value, and sweep "
                f"seeds (-m without hparams=optuna) with the settings that it finds."
            )
    held_out = data.valid.names() or data.valid_sts.names() or data.valid_split or data.valid_retrieval.name_or_path
    if not held_out and data.train.names() != [SAMPLE]:
        raise ConfigError(
            "hparams=optuna has nothing to compare jobs by: add data.valid_sts.name_or_path=FILE, pairs with labels, "
            "or train.best_metric=loss and data.valid_split=0.05, rows held out."
        )
    if world_size() > 1:
        raise ConfigError(
            "hparams=optuna cannot work in several processes: start it with python, and a launcher=... for several "
            "jobs at once."
        )


def _check(jobs: Sequence[list[str]], schema: type[Config], name: str) -> list[Config]:
    """Return the settings of jobs that can work, each in a folder of its own; without those known in the job only."""
    from hydra import compose
    from omegaconf.errors import InterpolationResolutionError

    configs, folders = list[Config](), list[str]()
    for job in jobs:
        try:
            config = build_config(compose(name, overrides=job), schema)
        except InterpolationResolutionError:  # of ${hydra:job.num} and the like
            continue
        configs.append(config)
        if isinstance(config, TrainConfig) and config.train.best_metric is not None:
            from angle.evaluation.run_evaluators import metric_named

            metric_named(config.train.best_metric)
        setting, folder = output_dir_setting(config)
        if folder is None:
            continue
        if os.path.abspath(folder) in folders:
            raise ConfigError(
                f"{setting}={folder} is one folder for several jobs: leave it out, or type "
                f"hydra.sweep.dir={folder}, in which each has its own."
            )
        folders.append(os.path.abspath(folder))
    return configs


def output_dir_setting(config: AnyConfig) -> tuple[str, str | None]:
    """Return the setting that names a job's folder, and its value."""
    if isinstance(config, TrainConfig):
        return "train.output_dir", config.train.output_dir
    return "output_dir", config.output_dir


def best_metric(config: AnyConfig) -> str | None:
    """Return the name of what a job's score measures, None for the default; a resumed run has settings of its own."""
    if not isinstance(config, TrainConfig):
        return None
    train = config.train
    return train.best_metric if train.resume is None else read_config(Path(train.resume)).train.best_metric


def slug(words: Sequence[str]) -> str:
    """Return a job's overrides as a folder name that is easy to type; if too long, cut, with a checksum at the end."""
    text = "_".join(words)
    name = re.sub(r"[^\w.-]+", "-", text.replace(",", "_")) or "defaults"
    if len(name) <= SLUG_LENGTH:
        return name
    return f"{name[: SLUG_LENGTH - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
