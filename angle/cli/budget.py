"""A search within a budget of time, in stages.

A first run shows what a step takes. Short runs, in half of the time, choose the settings; those that begin badly are
stopped. The best of them train as long as the time that is left allows, and the best of these with more seeds. The
model is the mean of the weights of those longer runs that make it no worse.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from angle.cli.search import WORDS, Launch, Recall, Search, locked, take_up
from angle.cli.space import parsed_distribution
from angle.cli.suggested import SUGGESTED, suggested_values
from angle.config import TrainConfig
from angle.config.keys import setting_types
from angle.config.record import read_config, read_record
from angle.errors import ConfigError, DataError
from angle.sweeps.budget import SOUP_FOLDER, Budget, Stage
from angle.sweeps.pace import FINALISTS, FIRST_STEPS, NUM_SEEDS, SHORT_LOOK_STEPS, SHORT_SHARE, Pace
from angle.sweeps.record import JobResult, SweepRecord, run_result
from angle.sweeps.settings import is_value
from angle.terminal import labelled, print_once

if TYPE_CHECKING:
    from optuna import Study

#: The stages.
FIRST, SHORT, FULL = "a first look", "choosing the settings", "the best of them, longer"
OWN, SEEDS, MEAN = "the settings as they are", "more seeds of the best", "the mean of their weights"
#: Evaluations within a run that chooses the settings, and within a longer one.
SHORT_EVALUATIONS, EVALUATIONS = 2, 4
#: The settings that the stages set.
STEPS, EVAL_STEPS, SEED = "train.max_steps", "train.eval_steps", "train.seed"
#: What runs that choose the settings do without: nothing is chosen by the model before training or by the test set, and
#: a run that is cut off begins again.
SPARED = {"train.eval_on_start": "false", "train.save_steps": "0"}
TEST = "data.test.name_or_path"


@dataclass(frozen=True)
class BudgetSearch(Search):
    """What to search within a budget of time; what the command line leaves open is suggested."""

    typed: frozenset[str]
    """The settings and groups that the command line sets."""
    own: TrainConfig
    """The settings without the search."""
    clock: Callable[[], float] = time.monotonic

    @property
    def keys(self) -> set[str]:
        """The settings in which jobs may differ."""
        return {*self.space, *(SUGGESTED - self.typed), STEPS, SEED}

    @property
    def total(self) -> int | None:
        """The number of jobs, which is not known."""
        return None

    def run(self, folder: Path, recall: Recall, launch: Launch, *, parallel: bool) -> None:
        """Run the stages; what an earlier command has done of them is not done again.

        Raises:
            ConfigError: the budget is too short, another search is in the folder, or jobs have no score.

        """
        with locked(folder):
            study, budget = self.open(folder), Budget.read(folder) or Budget(folder)
            budget.seconds = float(self.config.budget_seconds or 0)
            _Stages(self, study, budget, recall, launch, self.jobs_at_once(parallel=parallel)).run()

    def words(
        self, steps: int, seed: int | None = None, chosen: Sequence[str] = (), *, evaluations: int = EVALUATIONS
    ) -> list[str]:
        """Return the words of a job, beside those that all jobs have in common.

        Args:
            steps: its length.
            seed: its seed, None for that of the command line.
            chosen: words of the search.
            evaluations: how often it is measured; 0: as without the search.

        """
        words = [f"{STEPS}={steps}"]
        if evaluations and EVAL_STEPS not in self.typed:
            words.append(f"{EVAL_STEPS}={max(1, steps // evaluations)}")
        if seed is None and SEED in self.typed:
            seed = self.own.train.seed
        return [*words, *([] if seed is None else [f"{SEED}={seed}"]), *chosen]

    def short_words(self, steps: int) -> list[str]:
        """Return the words of a job that chooses the settings, beside those and what it tries."""
        spared = {key: value for key, value in SPARED.items() if key not in self.typed}
        if self.own.data.test.names():
            spared[TEST] = "null"
        return [*self.words(steps, evaluations=SHORT_EVALUATIONS), *(f"{key}={value}" for key, value in spared.items())]


@dataclass
class _Stages:
    """The stages of a search, on their way."""

    search: BudgetSearch
    study: Study
    budget: Budget
    recall: Recall
    launch: Launch
    at_once: int
    launched: int = 0

    def run(self) -> None:
        # The one as long runs are comes first: what it loads stays loaded.
        looks = [self.search.words(FIRST_STEPS), self.search.short_words(SHORT_LOOK_STEPS)]
        first, short_look = self._run(self.budget.stage(FIRST, FIRST_STEPS), looks)
        if first.error is not None or short_look.error is not None:
            return
        own_steps, pace = self._own_steps(first), self._pace([short_look.folder], SHORT_LOOK_STEPS)
        (short,) = self._decided("short", lambda: [self._short_steps(pace, own_steps)])
        short_stage = self.budget.stage(SHORT, short)
        self._choose(self._with_suggestions(first), short_stage, pace)

        chosen, seed = self._best(), self.search.own.train.seed
        if not chosen:
            return
        pace = replace(self._pace(short_stage.folders, short), around=self._pace([first.folder], FIRST_STEPS).around)
        full, compares = self._decided("full", lambda: list(pace.full_steps(self.budget.left, own_steps, self.at_once)))
        found = self._run(self.budget.stage(FULL, full), [self.search.words(full, seed, words) for words in chosen])
        own = list[JobResult]()
        if compares:
            own = self._run(self.budget.stage(OWN, own_steps), [self.search.words(own_steps, seed, evaluations=0)])
            self.budget.own = own[0].folder if _scored(own) else None
        finalists = [(words, job) for words, job in zip(chosen, found, strict=True) if job.score is not None]
        if finalists:
            words, best = max(finalists, key=lambda pair: pair[1].score or 0.0)
            jobs = [self.search.words(full, seed + more, words) for more in range(1, NUM_SEEDS)]
            others = self._run(self.budget.stage(SEEDS, full), jobs)
            self._conclude(_scored([best, *others]), _scored([*found, *own, *others]))

    def _run(self, stage: Stage, jobs: list[list[str]]) -> list[JobResult]:
        """Run jobs of a stage, as many at once as the launcher does; those that are done are only read."""
        found = list[JobResult]()
        for start in range(0, len(jobs), self.at_once):
            batch = [[*self.search.fixed, *job] for job in jobs[start : start + self.at_once]]
            found += self._timed(stage, batch)
        return found

    def _timed(self, stage: Stage, jobs: list[list[str]], _: int = 0) -> list[JobResult]:
        """Run jobs at once, and count their time."""
        with self.budget.timed(stage, self.search.clock):
            found = self.launch(jobs, self.launched)
            self.launched += len(jobs)
            stage.folders += [job.folder for job in found if job.folder not in stage.folders]
        return found

    def _conclude(self, chosen: list[JobResult], longer: list[JobResult]) -> None:
        """Write down what was chosen, and the model: a soup of the longer runs, unless the best of them is better.

        Args:
            chosen: the runs with the settings that were chosen, a seed each.
            longer: all runs but those that have chosen the settings.

        """
        from angle.training.result import Result

        soup = self.budget.folder / SOUP_FOLDER
        with self.budget.timed(self.budget.stage(MEAN, 0), self.search.clock):
            for jobs in (longer, chosen):
                if not soup.exists():
                    _cook(jobs, soup)
        best, result = max(longer, key=lambda job: job.score or 0.0), run_result(soup)
        score = None if result is None else Result(soup, **result).score
        is_better = score is not None and best.score is not None and score >= best.score
        self.budget.choose([job.folder for job in chosen], str(soup) if is_better else best.folder)

    def _decided(self, name: str, decide: Callable[[], list[int]]) -> list[int]:
        """Return numbers as an earlier command has decided them, or else now."""
        if name not in self.study.user_attrs:
            self.study.set_user_attr(name, decide())
        known: list[int] = self.study.user_attrs[name]
        return known

    def _own_steps(self, job: JobResult) -> int:
        """Return how many steps a run has without the search."""
        train, per_epoch = self.search.own.train, read_record(Path(job.folder))["steps_per_epoch"]
        if train.max_steps is None and per_epoch is None:
            raise ConfigError(
                "hparams.budget cannot tell how long a run on a stream is: add train.max_steps, its number of steps."
            )
        return train.max_steps or train.epochs * int(per_epoch)

    def _pace(self, folders: Sequence[str], steps: int) -> Pace:
        """Return how long runs take, from those of so many steps in these folders that were not stopped."""
        jobs = SweepRecord(self.budget.folder).finished(folders)
        trained = [float(read_record(Path(job["folder"]))["seconds"]) for job in jobs]
        around = [job["seconds"] - seconds for job, seconds in zip(jobs, trained, strict=True)]
        return Pace(max(0.0, statistics.median(around)), statistics.median(trained) / steps)

    def _short_steps(self, pace: Pace, own_steps: int) -> int:
        """Return the length of short runs, and tell what comes."""
        left = self.budget.left
        needed = pace.needed(self.at_once)
        if left < needed:
            minutes = -(-(self.budget.spent + needed) // 60)
            raise ConfigError(
                f"hparams.budget={self.search.config.budget} is too short: a run takes {pace.around:.0f} s, and "
                f"{pace.step:.2g} s more for each of its steps; type hparams.budget={minutes:.0f}m, or more."
            )
        steps = pace.short_steps(left, own_steps, self.at_once)
        plan = (
            f"{left / 60:.0f} minutes are left: {SHORT_SHARE:.0%} of them for runs of {steps:,} steps, which choose "
            f"the settings; then the best {FINALISTS} train longer, and the best of these with {NUM_SEEDS} seeds"
        )
        print_once(f"\n{labelled('budget', plan)}")
        return steps

    def _choose(self, search: Search, stage: Stage, pace: Pace) -> None:
        """Run short jobs for as long as their share of the time lasts."""
        words = self.search.short_words(stage.steps)
        cut_off, of_done = take_up(self.study)
        self.recall([[*search.fixed, *words, *job] for job in of_done])
        seconds = SHORT_SHARE * (self.budget.left + stage.seconds)
        most, done = search.config.trials or len(of_done) + 10**6, len(of_done)
        while done < most and (cut_off or stage.seconds + pace.seconds(stage.steps) <= seconds):
            count = min(self.at_once, most - done)
            done += search.draw(self.study, cut_off, count, partial(self._timed, stage), words)

    def _with_suggestions(self, first: JobResult) -> Search:
        """Return what chooses the settings; the first that it tries are those of a run without the search."""
        config, types = read_config(Path(first.folder)), setting_types(TrainConfig)
        assert config.train.learning_rate is not None
        suggested = {
            key: parsed_distribution(key, values, types.get(key))
            for key, values in suggested_values(config.train.learning_rate, config.data_format).items()
            if key not in self.search.typed
        }
        space = suggested | self.search.space
        if not self.study.get_trials(deepcopy=False):
            own = {key: attrgetter(key)(config) for key in space if key in types}
            self.study.enqueue_trial(_as_drawn(own, space))
        return Search(self.search.config, self.search.fixed, space)

    def _best(self) -> list[list[str]]:
        """Return the words of the jobs that scored best, each once, the best first."""
        from optuna.trial import TrialState

        trials = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        ranked = sorted(trials, key=lambda trial: -(trial.value or 0.0))
        return [list(words) for words in dict.fromkeys(tuple(trial.user_attrs[WORDS]) for trial in ranked)][:FINALISTS]


def _scored(jobs: Sequence[JobResult]) -> list[JobResult]:
    """Return the jobs that have a score."""
    return [job for job in jobs if job.score is not None]


def _cook(jobs: Sequence[JobResult], soup: Path) -> None:
    """Write the mean of the weights of those runs that make it no worse, or say why they have none."""
    from angle.soups.ingredients import GREEDY
    from angle.soups.soup import make_soup

    try:
        if len(jobs) > 1:
            make_soup([Path(job.folder) for job in jobs], GREEDY, output=soup)
    except (ConfigError, DataError) as error:  # they may differ in what makes a model, such as lora.enabled
        print_once(labelled("note", f"no mean of the weights of {len(jobs)} runs: {error}"))


def _as_drawn(values: dict[str, Any], space: dict[str, Any]) -> dict[str, Any]:
    """Return values as they would be drawn from a space; without those that could not be."""
    from optuna.distributions import CategoricalDistribution

    drawn = dict[str, Any]()
    for key, value in values.items():
        if isinstance(space[key], CategoricalDistribution):
            value = next((choice for choice in space[key].choices if is_value(str(choice), value)), None)
            if value is not None:
                drawn[key] = value
        elif value is not None and space[key].low <= value <= space[key].high:
            drawn[key] = value
    return drawn
