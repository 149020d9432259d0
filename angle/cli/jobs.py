"""The jobs of a script: one, or in a sweep one for each combination of values."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic

from angle.cli.sweep import best_metric, output_dir_setting, select_overrides
from angle.cli.sweep_record import JobResult, SweepRecord
from angle.cli.user_errors import USER_ERRORS, exit_on_broken_pipe, print_error
from angle.config import ConvertConfig, TrainConfig
from angle.config.build import Config, build_config
from angle.distributed.environment import is_main_process, is_multi_node, launch_time, world_size
from angle.errors import ConfigError, HubError, first_line
from angle.files import explained_disk_errors
from angle.terminal import print_once


@dataclass
class JobRunner(Generic[Config]):
    """Runs a script's task on every configuration that Hydra composes, and collects the results."""

    task: Callable[[Config], float | None]
    schema: type[Config]
    swept: set[str]
    """The settings in which the jobs of a sweep differ."""
    total: int | None = None
    """The number of jobs; None if it is not known."""
    results: list[JobResult] = field(default_factory=list)
    sweep_folder: str | None = None
    """The folder of the sweep, once its first job has begun."""

    def run(self, composed: Any) -> float | None:
        """Run the task on a configuration composed by Hydra, and return its score; an error ends only this job."""
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        hydra_config = HydraConfig.get()
        is_sweep = hydra_config.mode is RunMode.MULTIRUN
        hydra_folder = hydra_config.runtime.output_dir
        words = select_overrides(hydra_config.overrides.task, self.swept)
        settings = {name.lstrip("+~"): value for name, _, value in (word.partition("=") for word in words)}
        result, start = JobResult(settings, hydra_folder), time.monotonic()
        if is_sweep:
            self.sweep_folder = _relative_if_below(str(hydra_config.sweep.dir))
            print_once(f"\n{self._header(result)}")
        try:
            config = build_config(composed, self.schema)
            result.folder = _set_output_dir(config, hydra_folder)
            with explained_disk_errors(result.folder, "type the same command again."):
                result.score = self.task(config)
            result.best_metric = best_metric(config)
            result.error = None
            result.trained = isinstance(config, TrainConfig) and not config.train.dry_run
        except USER_ERRORS as error:
            result.error = first_line(error)
            print_error(error)
            if world_size() > 1:  # the next job would receive what other processes still send for this one
                sys.exit(1)
        except HubError as error:
            result.error = first_line(error)
            print_error(error)
            result.score = error.score  # the job is finished, only its push failed
            result.best_metric = best_metric(config)
        except BrokenPipeError:
            exit_on_broken_pipe()
        except Exception as error:
            result.error = f"{type(error).__name__}: {first_line(error)}"
            if not is_sweep or world_size() > 1:
                raise
            traceback.print_exc()  # the other jobs of the sweep may still succeed
        except KeyboardInterrupt:
            result.error = "interrupted"
            raise
        finally:
            result.seconds = time.monotonic() - start
            if is_main_process():
                _remove_if_empty(Path(hydra_folder))
                if self.sweep_folder is not None:
                    SweepRecord(Path(self.sweep_folder)).add(result)
        self.results.append(result)
        return result.score

    def _header(self, job: JobResult) -> str:
        """Return the line above what a job prints: which it is, and how long the rest may take."""
        number, seconds = len(self.results) + 1, [done.seconds for done in self.results if done.error is None]
        of, left = "", ""
        if self.total is not None:
            of = f" of {self.total}"
            if seconds:
                left = f"  (about {_duration(max(seconds) * (self.total - number + 1))} left)"
        return f"Job {number}{of}  {job.overrides}{left}"


def _duration(seconds: float) -> str:
    """Return a time in words, in its largest unit."""
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _set_output_dir(config: Any, default: str) -> str:
    """Write the job's folder into its configuration if that names none, and return the folder of its results."""
    setting, output_dir = output_dir_setting(config)
    if output_dir is None and not isinstance(config, ConvertConfig):
        output_dir = _relative_if_below(check_common_folder(default, setting))
        target = config.train if isinstance(config, TrainConfig) else config
        target.output_dir = output_dir
    resumed = config.train.resume if isinstance(config, TrainConfig) else None
    return resumed or output_dir or default


def check_common_folder(folder: str, setting: str = "train.output_dir") -> str:
    """Return `folder`, the default of `setting`, if all processes have the same.

    Raises:
        ConfigError: its name contains the launch time, which differs between machines.

    """
    if is_multi_node() and launch_time() in folder:
        raise ConfigError(
            f"{setting} is missing: each machine would choose a different folder. Give one on a disk that they "
            f"share, the same to all."
        )
    return folder


def _relative_if_below(folder: str) -> str:
    """Return a folder relative to the current one if it is inside it."""
    relative = os.path.relpath(folder)
    return folder if relative.startswith("..") else relative


def _remove_if_empty(folder: Path) -> None:
    """Remove the folder that Hydra created, and its empty parents, if nothing was written to it."""
    for candidate in [folder, *folder.parents][:3]:
        try:
            candidate.rmdir()
        except OSError:
            return
