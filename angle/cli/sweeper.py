"""The jobs of a sweep, given to whichever launcher Hydra has for them, and what they have found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from angle.cli.jobs import JobRunner
from angle.cli.launchers import BASIC, Lost, waiting_for_every_job
from angle.cli.search import Search
from angle.distributed.environment import is_main_process, world_size
from angle.errors import ConfigError
from angle.files import relative_to_cwd
from angle.sweeps.record import INTERRUPTED, JobResult, SweepRecord
from angle.terminal import print_once


class Sweeper:
    """What Hydra calls for a sweep; `check_jobs` has composed and checked all of its jobs.

    A launcher may run jobs in other processes, on other machines, and lose one of them. What a job has found comes back
    as its return value, or else from the record in the sweep's folder.
    """

    def __init__(self, runner: JobRunner[Any], jobs: Sequence[Sequence[str]], search: Search | None) -> None:
        """Set the jobs, each as the words of its command line, or the search that chooses them."""
        self.runner = runner
        self.jobs = jobs
        self.search = search
        self._found: list[JobResult] = []
        self.recalled: list[JobResult] = []
        self.begun: list[Sequence[str]] = []
        runner.total = len(jobs) if search is None else search.total

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        """Make the launcher that the configuration names; called by Hydra.

        Raises:
            ConfigError: presets name another sweeper, or several processes would each launch all jobs.

        """
        from hydra.core.plugins import Plugins

        self.config, choices = config, config.hydra.runtime.choices
        self.launcher_name: str = choices["hydra/launcher"]
        if choices["hydra/sweeper"] != BASIC or config.hydra.sweeper.params:
            raise ConfigError(
                "hydra.sweeper in a preset is not supported: write what to choose from as hparams.space, and type "
                "hparams=optuna."
            )
        if self.launcher_name != BASIC and world_size() > 1:
            raise ConfigError(
                f"hydra/launcher={self.launcher_name} cannot work in several processes, each of which would launch all "
                f"jobs: start it with python, or leave the launcher out."
            )
        self.launcher = Plugins.instance().instantiate_launcher(hydra_context, task_function, config)

    def sweep(self, arguments: list[str]) -> None:
        """Run all jobs; called by Hydra."""
        from omegaconf import OmegaConf

        folder = Path(str(self.config.hydra.sweep.dir))
        folder.mkdir(parents=True, exist_ok=True)
        if is_main_process():
            OmegaConf.save(self.config, folder / "multirun.yaml")
        self.runner.sweep_folder = relative_to_cwd(folder)
        if self.search is None:
            self.launch(self.jobs, 0)
        else:
            self.search.run(folder, self.recall, self.launch, parallel=self.launcher_name != BASIC)

    def recall(self, jobs: Sequence[Sequence[str]]) -> None:
        """Count jobs that earlier commands have done among those of this one."""
        self.recalled = list(filter(None, (self._record().outcome(self.runner.settings(job)) for job in jobs)))

    def launch(self, jobs: Sequence[Sequence[str]], start: int) -> list[JobResult]:
        """Run some jobs, numbered from `start`, at once if the launcher does, and return what they have found."""
        self.begun += jobs
        for number, job in enumerate(jobs, start + 1):
            self.runner.numbers.setdefault(JobResult(self.runner.settings(job), "").overrides, []).append(number)
        if self.launcher_name != BASIC and len(jobs) > 1:
            print_once(f"\n{len(jobs)} jobs by {self.launcher_name}; the lines of each are in its train.log")
        found = self._launch(jobs, start)
        self._found += found
        return found

    def _launch(self, jobs: Sequence[Sequence[str]], start: int) -> list[JobResult]:
        """Run jobs, numbered from `start`, and return what they have found.

        A launcher that lost a process may have ended all others, and begun no more: what it left undone is done one at
        a time, so that a job that ends its process takes no other along.
        """
        try:
            with waiting_for_every_job(self.launcher_name):
                returns: Sequence[Any] = self.launcher.launch([list(job) for job in jobs], initial_job_idx=start)
        except Exception as error:
            if self.launcher_name == BASIC:
                raise
            if len(jobs) > 1:
                print_once(
                    f"Warning: {self.launcher_name} has lost a process; its other jobs are tried again, one at a time."
                )
                return [self._outcome(job) or self._launch([job], number)[0] for number, job in enumerate(jobs, start)]
            returns = [Lost(error)]
        return [
            self._lost(job, returned.error) if isinstance(returned, Lost) else returned.return_value
            for job, returned in zip(jobs, returns, strict=True)
        ]

    @property
    def results(self) -> list[JobResult]:
        """What all jobs have found, each once: a search may have come to the same settings again."""
        return list({job.overrides: job for job in (*self.recalled, *self._found)}.values())

    def outcomes(self) -> list[JobResult]:
        """Return what the jobs of this sweep have found that are over, also if it was interrupted."""
        found = map(self._outcome, self.begun)
        return [*self.recalled, *(job for job in found if job is not None and job.error != INTERRUPTED)]

    def _outcome(self, job: Sequence[str]) -> JobResult | None:
        """Return what the record has of a job of this sweep; None if that is not over."""
        recorded = self._record().outcome(self.runner.settings(job), self.runner.command)
        return recorded if recorded is not None and recorded.is_over else None

    def _lost(self, job: Sequence[str], error: BaseException) -> JobResult:
        """Return the outcome of a job whose process was lost, which is what it has written down, or that."""
        settings, record = self.runner.settings(job), self._record()
        result = record.outcome(settings, self.runner.command) or JobResult(settings, folder="")
        if not result.is_over:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            result.error = f"its process ended before it did ({' '.join(lines[:2])})"  # the second has the exit code
            if result.folder:
                record.add(result, self.runner.command)
        return result

    def _record(self) -> SweepRecord:
        return SweepRecord(Path(str(self.runner.sweep_folder)), self.runner.defaults)
