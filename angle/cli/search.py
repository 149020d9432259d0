"""A search by Optuna: which values the jobs of a sweep get, from what the earlier ones have scored."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from angle.cli.space import typed_value
from angle.config import HparamsConfig
from angle.errors import ConfigError
from angle.files import try_lock
from angle.sweeps.record import STUDY_FILE, JobResult

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

#: Counts jobs, given by their words, that an earlier command has done among those of this one.
Recall = Callable[[list[list[str]]], None]
#: Runs jobs, given by their words and the number of the first, and returns what they have found.
Launch = Callable[[list[list[str]], int], list[JobResult]]

#: In the sweep's folder: keeps other searches out.
LOCK_FILE = ".optuna.lock"
STUDY = "search"
#: Jobs in all, and jobs that are run together where a launcher runs several at once.
TRIALS, PARALLEL = 20, 4
#: States of trials that have a score.
DONE = ("COMPLETE", "PRUNED")
#: Attributes of a study, and of a trial.
SETTINGS, PRUNE, WORDS = "settings", "prune", "words"
#: Marks of training at which scores of jobs are compared.
MARKS = 1000


@dataclass(frozen=True)
class Search:
    """What to search, and how."""

    config: HparamsConfig
    fixed: Sequence[str]
    """The words that all jobs have in common."""
    space: dict[str, Any]
    """What a setting's values are drawn from: Optuna's distribution."""

    @property
    def keys(self) -> set[str]:
        """The settings in which jobs may differ."""
        return set(self.space)

    @property
    def total(self) -> int | None:
        """The number of jobs, None if it is not known."""
        return self.trials

    @property
    def trials(self) -> int:
        """The number of jobs that Optuna chooses."""
        return self.config.trials or TRIALS

    def run(self, folder: Path, recall: Recall, launch: Launch, *, parallel: bool) -> None:
        """Run jobs until there are `hparams.trials`; those that were cut off or have failed before come first.

        Args:
            folder: the sweep's, in which the search is saved after every job, and goes on if there is one.
            recall: is told of the jobs that an earlier command has done.
            launch: runs jobs.
            parallel: whether it runs several at once.

        Raises:
            ConfigError: another search is in the folder, or jobs have no score.

        """
        at_once = self.jobs_at_once(parallel=parallel)
        with locked(folder):
            study = self.open(folder)
            cut_off, words_of_done = take_up(study)
            recall([[*self.fixed, *words] for words in words_of_done])
            done = len(words_of_done)
            while done < self.trials:
                done += self.draw(study, cut_off, min(at_once, self.trials - done), launch)

    def jobs_at_once(self, *, parallel: bool) -> int:
        """Return how many jobs are chosen together."""
        return self.config.parallel or (PARALLEL if parallel else 1)

    def draw(self, study: Study, cut_off: list[int], count: int, launch: Launch, more: Sequence[str] = ()) -> int:
        """Choose and run jobs, of those that were cut off these first; return how many.

        Args:
            study: what is known.
            cut_off: the numbers of jobs to be run again, from which these are taken.
            count: how many, at least.
            launch: runs them.
            more: words that they have beside those of the search.

        """
        batch = cut_off[:count]
        del cut_off[:count]
        batch += [self._ask(study) for _ in range(count - len(batch))]
        words = [study.trials[number].user_attrs[WORDS] for number in batch]
        distinct = [list(job) for job in dict.fromkeys(map(tuple, words))]
        found = launch([[*self.fixed, *more, *job] for job in distinct], batch[0])
        for number, job in zip(batch, words, strict=True):
            _tell(study, number, found[distinct.index(job)])
        return len(batch)

    def open(self, folder: Path) -> Study:
        """Return the study in a folder, a new one if there is none."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        study = optuna.create_study(
            storage=_storage(folder), study_name=STUDY, direction="maximize", load_if_exists=True
        )
        # With the same seed as before, it would draw what it has drawn.
        study.sampler = optuna.samplers.TPESampler(seed=self.config.seed + len(study.trials))
        settings = [*self.fixed, *(f"{name}: {distribution}" for name, distribution in self.space.items())]
        settings = sorted(word for word in settings if not word.startswith("hparams"))
        if (known := study.user_attrs.get(SETTINGS, settings)) != settings:
            changed = sorted({*known} ^ {*settings})
            raise ConfigError(
                f"hydra.sweep.dir={folder} holds a search with other settings ({'; '.join(changed)}), whose scores "
                f"cannot be compared with these: give another folder."
            )
        study.set_user_attr(SETTINGS, settings)
        study.set_user_attr(PRUNE, self.config.prune)
        return study

    def _ask(self, study: Study) -> int:
        """Let Optuna choose the settings of a job, and return its number."""
        trial = study.ask(self.space)
        words = [f"{name}={typed_value(trial.params[name], distribution)}" for name, distribution in self.space.items()]
        trial.set_user_attr(WORDS, words)
        return trial.number


def take_up(study: Study) -> tuple[list[int], list[list[str]]]:
    """Prepare to go on with a search: return the numbers of jobs that were cut off, and the words of those done.

    Those that failed are enqueued, to be tried again.
    """
    from optuna.trial import TrialState

    cut_off = list[int]()
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        if WORDS in trial.user_attrs:
            cut_off.append(trial.number)
        else:  # it was cut off before its job could begin
            study.tell(trial.number, state=TrialState.FAIL)
    trials = study.get_trials(deepcopy=False)
    known: list[Any] = [trial.params for trial in trials if trial.state is not TrialState.FAIL]
    known += [trial.system_attrs.get("fixed_params") for trial in trials if trial.state is TrialState.WAITING]
    for trial in trials:
        if trial.state is TrialState.FAIL and trial.params not in known:
            study.enqueue_trial(trial.params)
            known.append(trial.params)
    return cut_off, [trial.user_attrs[WORDS] for trial in trials if trial.state.name in DONE]


def check_optuna() -> None:
    """Raise ConfigError if Optuna is not installed."""
    if find_spec("optuna") is None:
        raise ConfigError("hparams=optuna needs the package optuna: type pip install -e '.[optuna]'.")


def _storage(folder: Path) -> Any:
    """Return the file in which a search is saved, which several processes, also on a network disk, may write to."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    return JournalStorage(JournalFileBackend(str(folder / STUDY_FILE)))


def _tell(study: Study, number: int, result: JobResult) -> None:
    """Let Optuna know what has become of a job."""
    from optuna.trial import TrialState

    if result.pruned:
        study.tell(number, state=TrialState.PRUNED)
    elif result.error is not None:
        study.tell(number, state=TrialState.FAIL)
    elif result.score is None:
        study.tell(number, state=TrialState.FAIL)
        raise ConfigError(
            "hparams=optuna has nothing to compare jobs by: data.valid_sts.name_or_path=FILE measures them on pairs "
            "with labels, and data.valid_split=0.05 with train.best_metric=loss on rows held out."
        )
    else:
        study.tell(number, result.score)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other searches out of a folder."""
    with (folder / LOCK_FILE).open("w") as file:
        if not try_lock(file):
            raise ConfigError(f"hydra.sweep.dir={folder} is in use: another search runs there. Wait for it.")
        yield


def job_pruner() -> Callable[[float, float], bool] | None:
    """Return what a job of a search asks whether to stop early; None if this is no such job.

    It is told how much of its training a job has done, from 0 to 1, and its score then, higher being better.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    hydra = HydraConfig.get()
    folder = Path(str(hydra.sweep.dir))
    if hydra.mode is not RunMode.MULTIRUN or not (folder / STUDY_FILE).is_file():
        return None
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.load_study(study_name=STUDY, storage=_storage(folder), pruner=optuna.pruners.MedianPruner())
    trial = _trial_of(study, hydra.overrides.task)
    if trial is None:
        return None
    job = optuna.Trial(study, trial._trial_id)

    def should_stop(share_done: float, score: float) -> bool:
        job.report(score, round(share_done * MARKS))
        return bool(study.user_attrs[PRUNE] and job.should_prune())

    return should_stop


def _trial_of(study: Study, words: Sequence[str]) -> FrozenTrial | None:
    """Return the trial that a job with these words is."""
    from optuna.trial import TrialState

    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    return next((trial for trial in running if set(trial.user_attrs.get(WORDS, ["-"])) <= set(words)), None)
