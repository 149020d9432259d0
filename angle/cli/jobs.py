"""The jobs of a script: one, or in a sweep one for each combination of values."""

from __future__ import annotations

import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic
from uuid import uuid4

from angle.cli.launchers import ended_with, labelled_lines
from angle.cli.replaced_sources import let_words_replace_sources
from angle.cli.sweep import best_metric, output_dir_setting, select_overrides
from angle.cli.user_errors import USER_ERRORS, exit_on_broken_pipe, print_error
from angle.config import ConvertConfig, HparamsConfig, TrainConfig
from angle.config.build import Config, build_config
from angle.distributed.environment import is_main_process, is_multi_node, launch_time, world_size
from angle.errors import ConfigError, HubError, first_line
from angle.files import explained_disk_errors
from angle.sweeps.record import INTERRUPTED, JobResult, SweepRecord, run_result
from angle.terminal import print_once


@dataclass
class JobRunner(Generic[Config]):
    """Runs a script's task on the configurations that Hydra composes, also as a copy in another process."""

    task: Callable[[Config], float | None]
    schema: type[Config]
    swept: set[str]
    """The settings in which the jobs of a sweep differ."""
    total: int | None = None
    """The number of jobs; None if it is not known."""
    numbers: dict[str, list[int]] = field(default_factory=dict)
    """The numbers of a sweep's jobs by the settings in which they differ; a launcher may count others."""
    results: list[JobResult] = field(default_factory=list)
    """Of the jobs that have ended in this process."""
    defaults: dict[str, Any] = field(default_factory=dict)
    """What the settings in which the jobs differ are where none sets them."""
    sweep_folder: str | None = None
    """The folder of the sweep, once its first job has begun."""
    command: str = field(default_factory=lambda: uuid4().hex)
    """What identifies this command in the record of a sweep, which may have jobs of others."""
    arguments: list[str] = field(default_factory=lambda: list(sys.argv))
    """What the user typed."""
    process: int = field(default_factory=os.getpid)
    """The process of the command."""
    is_copy: bool = False
    """Whether this is another process than that of the command."""

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy in another process gets."""
        return self.__dict__ | {"is_copy": True, "results": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Become a copy in another process, which may compose the job there, as submitit's do."""
        self.__dict__.update(state)
        let_words_replace_sources()

    def settings(self, words: Sequence[str]) -> dict[str, str]:
        """Return the settings in which a job differs from others, from the words of its command line."""
        selected = (word.partition("=") for word in select_overrides(words, self.swept))
        return {name.lstrip("+~"): value for name, _, value in selected}

    def run(self, composed: Any) -> JobResult:
        """Run the task on a configuration composed by Hydra, and return what it has found; an error ends only this."""
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        hydra_config = HydraConfig.get()
        is_sweep = hydra_config.mode is RunMode.MULTIRUN
        result = JobResult(self.settings(hydra_config.overrides.task), hydra_config.runtime.output_dir)
        if is_sweep:
            self.sweep_folder = _relative_if_below(str(hydra_config.sweep.dir))
        if self.is_copy:
            sys.argv = self.arguments
            is_child = os.getppid() == self.process  # and no job of its own, as a scheduler's
            with labelled_lines(f"[{self._number(result)}]"), ended_with(self.process) if is_child else nullcontext():
                self._run(composed, result, is_sweep=is_sweep)
        else:
            self._run(composed, result, is_sweep=is_sweep)
        self.results.append(result)
        return result

    def _run(self, composed: Any, result: JobResult, *, is_sweep: bool) -> None:
        """Do what `run` does, and write down in `result` what comes of it."""
        hydra_folder, start = result.folder, time.monotonic()
        if is_sweep:
            print_once(self._header(result) if self.is_copy else f"\n{self._header(result)}")
        try:
            config = build_config(composed, self.schema)
            if isinstance(config, TrainConfig):
                if config.hparams.enabled and not is_sweep:
                    raise ConfigError("hparams=optuna searches in a sweep only: add -m, or leave it out.")
                config.hparams = HparamsConfig()  # a job is one of a search, and has none
            result.folder = _set_output_dir(config, hydra_folder)
            self._record(result)
            with explained_disk_errors(result.folder, "type the same command again."):
                result.score = self.task(config)
            result.best_metric = best_metric(config)
            result.error = None
            result.trained = isinstance(config, TrainConfig) and not config.train.dry_run
            if result.trained and (run_result(Path(result.folder)) or {}).get("pruned"):
                result.pruned, result.score = True, None
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
            result.error = INTERRUPTED
            if not self.is_copy:  # else the other jobs of the sweep go on
                raise
        finally:
            result.seconds = time.monotonic() - start
            if is_main_process():
                _remove_if_empty(Path(hydra_folder))
            self._record(result)

    def _record(self, job: JobResult) -> None:
        """Write down in the sweep's folder what is known of a job."""
        if self.sweep_folder is not None and is_main_process():
            SweepRecord(Path(self.sweep_folder), self.defaults).add(job, self.command)

    def _number(self, job: JobResult) -> int:
        """Return the number of a job, from 1; jobs with the same settings run in the order of their numbers."""
        numbers = self.numbers.get(job.overrides, [])
        before = sum(done.overrides == job.overrides for done in self.results)
        return numbers[before] if before < len(numbers) else len(self.results) + 1

    def _header(self, job: JobResult) -> str:
        """Return the line above what a job prints: which it is, and how long the rest may take."""
        number, of, left = self._number(job), "", ""
        if self.total is not None:
            of = f" of {self.total}"
            seconds, running = SweepRecord(Path(str(self.sweep_folder))).progress(self.command)
            if seconds:
                rounds = math.ceil((self.total - number + 1 + running) / (running + 1))
                left = f"  (about {_duration(max(seconds) * rounds)} left)"
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
