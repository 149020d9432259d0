"""A hyperparameter sweep (-m): one job for each combination of the values on a command line."""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

from angle.cli.arguments import MAX_JOBS
from angle.config import ConvertConfig, EvaluateConfig, TrainConfig
from angle.config.build import Config, build_config
from angle.config.record import read_config
from angle.errors import ConfigError

#: Maximum length of a job's folder name: file systems allow 255 bytes.
SLUG_LENGTH = 100


def swept_keys(words: Sequence[str]) -> set[str]:
    """Return the settings and groups that a command line gives several values; if there are none, all that it sets."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    overrides = OverridesParser.create().parse_overrides(list(words))
    swept = {override.key_or_group for override in overrides if override.is_sweep_override()}
    return swept or {override.key_or_group for override in overrides}


def select_overrides(words: Sequence[str], keys: set[str]) -> list[str]:
    """Return the overrides that set one of `keys`."""
    return [word for word in words if word.lstrip("+~").partition("=")[0] in keys]


def check_jobs(words: Sequence[str], schema: type[Config], name: str, conf: Path) -> int | None:
    """Compose the settings of every job up front, so that none fails on them after others have been trained.

    Returns:
        The number of jobs; None if another sweeper decides it.

    Raises:
        ConfigError: a job has a value that cannot work, contradictory settings, or the same folder as another job.

    """
    from hydra import compose, initialize_config_dir
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf.errors import InterpolationResolutionError

    overrides = OverridesParser.create().parse_overrides(list(words))
    if any(override.key_or_group == "hydra/sweeper" for override in overrides):
        return None  # which values another sweeper tries is not known beforehand
    count = math.prod(len(list(o.sweep_string_iterator())) for o in overrides if o.is_sweep_override())
    if count > MAX_JOBS:
        raise ConfigError(f"-m names {count:,} jobs, and one command runs at most {MAX_JOBS:,}: give fewer values.")
    (jobs,) = BasicSweeper.split_arguments(overrides, None)
    folders = list[str]()
    with initialize_config_dir(str(conf), version_base="1.3"):
        for job in jobs:
            try:
                config = build_config(compose(name, overrides=list(job)), schema)
            except InterpolationResolutionError:  # of ${hydra:job.num} and the like, which are known in the job only
                continue
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
    return len(jobs)


def output_dir_setting(config: TrainConfig | EvaluateConfig | ConvertConfig) -> tuple[str, str | None]:
    """Return the setting that names a job's folder, and its value."""
    if isinstance(config, TrainConfig):
        return "train.output_dir", config.train.output_dir
    return "output_dir", config.output_dir


def best_metric(config: TrainConfig | EvaluateConfig | ConvertConfig) -> str | None:
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
