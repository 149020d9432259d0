"""What evaluate.py measures on: known tasks, files in format A, retrieval sets, or a run's own test set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor
from tqdm import tqdm

from angle.config import CONFIG_FILE, EvaluateConfig, LimitsConfig, RetrievalConfig, SourceConfig, TrainConfig
from angle.config.record import read_config
from angle.data.corpus import Corpus
from angle.data.language import note_on_unknown
from angle.data.purposes import RUN_TEST_SET, TASKS, default_split
from angle.data.retrieval import RetrievalSet, load_retrieval_set
from angle.data.retrieval_files import (
    BEIR_OWNER,
    NANO_BEIR,
    NANO_BEIR_ALL,
    NANO_BEIR_OWNER,
    is_retrieval_folder,
    nano_beir_set,
)
from angle.distributed.process_group import best_device
from angle.errors import ConfigError, did_you_mean
from angle.evaluation.encoding import encode_distributed
from angle.evaluation.evaluator import Encode
from angle.evaluation.evaluators.sts import load_sts
from angle.modeling.encoder import Encoder
from angle.modeling.kernel_choice import kernels_to_skip, kernels_to_skip_from_main_process
from angle.modeling.locations import TINY
from angle.structures import Tokens
from angle.terminal import announce, clear_announcement, print_note

if TYPE_CHECKING:
    from accelerate import PartialState

#: The results files of an evaluation and of a grid, which also write others.
RESULTS_FILE, GRID_FILE = "results.json", "grid.json"
#: The folder in which mteb keeps its results.
MTEB_FOLDER = "results"

#: Name of a task -> data set on the hub, in the order of the published tables.
HUB_TASKS = {
    "sts12": "mteb/sts12-sts",
    "sts13": "mteb/sts13-sts",
    "sts14": "mteb/sts14-sts",
    "sts15": "mteb/sts15-sts",
    "sts16": "mteb/sts16-sts",
    "stsb": "mteb/stsbenchmark-sts",
    "sickr": "mteb/sickr-sts",
}
ALIASES = {"sick": "sickr"}
HUB_COLUMNS = {"text1": "sentence1", "text2": "sentence2", "label": "score"}


@dataclass(frozen=True)
class EvaluationTasks:
    """A model, and the tasks to measure it on."""

    folder: Path
    """Where the results are written."""
    encoder: Encoder
    sources: dict[str, SourceConfig | RetrievalConfig]
    purpose: str
    """What the sources are to the model: a run's own test set, or tasks."""
    positive_above: float | None
    """Label above which a pair is positive; None: see `positive_threshold`."""
    processes: PartialState | None
    """Those that split the work, None for just this one."""
    batch_size: int
    """Texts per batch."""
    limits: LimitsConfig
    """What is read of a source at most."""

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes."""
        return self.processes is None or self.processes.is_main_process

    def pairs(self) -> Iterator[tuple[str, Corpus, Encode]]:
        """Yield each task that has pairs: its name, the pairs, and a way to encode their texts that shows progress."""
        for name, source in self.sources.items():
            if isinstance(source, SourceConfig):
                announce(f"reading {name}")
                corpus = load_sts(source, self.purpose, self.encoder.tokenizer, self.limits)
                self._note(note_on_unknown(corpus.unknown, name))
                yield name, corpus, self.encode_of(name)

    def retrieval_sets(self) -> Iterator[tuple[str, RetrievalSet, Encode]]:
        """Yield the same of each task that is a retrieval set."""
        for name, source in self.sources.items():
            if isinstance(source, RetrievalConfig):
                announce(f"reading {name}")
                queries = load_retrieval_set(source, self.purpose, self.encoder.tokenizer, self.limits)
                self._note(note_on_unknown(queries.unknown, name))
                self._note(queries.note(name))
                yield name, queries, self.encode_of(name)

    def encode_of(self, name: str) -> Encode:
        """Return a way to encode the texts of a task that shows the progress."""
        return partial(self._encode, name)

    def _note(self, note: str | None) -> None:
        if note is not None and self.is_main:
            print_note(note)

    def _encode(self, name: str, tokens: Tokens, depths: Sequence[int] | None = None) -> Tensor:
        """Return the embeddings of a task's texts, as `Encode` does."""
        texts = -(-len(tokens) // (1 if self.processes is None else self.processes.num_processes))
        disable = None if self.is_main else True  # None hides the bar if the output is not a terminal
        clear_announcement()
        with tqdm(total=texts, desc=name, unit="text", disable=disable, leave=False) as bar:
            encode = partial(self.encoder.encode_tokens, batch_size=self.batch_size, progress=bar.update, depths=depths)
            return encode_distributed(encode, tokens, self.processes)


def load_tasks(config: EvaluateConfig, processes: PartialState | None = None) -> EvaluationTasks:
    """Load the model, and find its tasks and a folder for the results.

    Args:
        config: the model, and what to measure it on.
        processes: as in `evaluate`.

    Raises:
        ConfigError: a model that cannot be loaded, an unknown task, or an output folder that is not writable.

    """
    folder = _new_folder(config)
    run = None if config.tasks is not None else _run_config(config)
    sources: dict[str, SourceConfig | RetrievalConfig] = {}
    if config.suite is not None:
        pass  # which knows its own data
    elif config.tasks is not None:
        sources = {task: task_source(task, config) for task in expand_tasks(config.tasks)}
        _check_kinds(sources, config)
    else:
        sources = _test_set(config, SourceConfig() if run is None else run.data.test)
    positive_above = config.positive_above
    if positive_above is None:  # on a run's own test set, the same as in training
        in_training = None if run is None else run.loss_of("A").positive_above
        positive_above = in_training if in_training and in_training > 0.5 else None
    announce(f"loading {config.model.name_or_path}")
    kernel_selector = kernels_to_skip if processes is None else kernels_to_skip_from_main_process
    encoder = Encoder.load(config.model, config.pooling, kernel_selector=kernel_selector)
    encoder.to(best_device() if processes is None else processes.device).eval()
    purpose = TASKS if run is None else RUN_TEST_SET
    return EvaluationTasks(
        folder, encoder, sources, purpose, positive_above, processes, config.batch_size, config.limits
    )


def _new_folder(config: EvaluateConfig) -> Path:
    """Return the folder for results, which is checked first, so that nothing is computed in vain."""
    folder = Path(config.output_dir or "evaluations")
    existing = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    if existing.is_file():
        raise ConfigError(f"output_dir={folder} cannot be a folder: {existing} is a file; give a new folder.")
    written = MTEB_FOLDER if config.suite is not None else GRID_FILE if config.ese_grid else RESULTS_FILE
    if (folder / written).exists():
        raise ConfigError(f"output_dir={folder} holds results already; give a new folder.")
    return folder


def _run_config(config: EvaluateConfig) -> TrainConfig | None:
    """Return the settings saved with the model if it is a training run, else None."""
    folder = Path(config.model.name_or_path)
    return read_config(folder) if (folder / CONFIG_FILE).is_file() else None


def _test_set(config: EvaluateConfig, source: SourceConfig) -> dict[str, SourceConfig | RetrievalConfig]:
    """Return a run's own test set by name.

    Raises:
        ConfigError: the model is no run, or a run without a test set.

    """
    if not source.names():
        name = config.model.name_or_path
        looked_for = "" if Path(name).exists() or name == TINY else f"There is no folder {name} here. "
        raise ConfigError(
            f"{looked_for}tasks is missing, and the model is no run with a test set of its own: give for example "
            "tasks=[stsb], tasks=[sts] (all seven), tasks=[NanoMSMARCO], or tasks=[pairs.jsonl]."
        )
    # Settings given now win, so that the advice of a message about columns or labels works for a run's test set too.
    source = replace(source, columns=config.columns or source.columns, label_map=config.label_map or source.label_map)
    return {f"{', '.join(source.names())} ({source.split or default_split(RUN_TEST_SET)})": source}


def expand_tasks(tasks: list[str]) -> list[str]:
    """Return the tasks with `sts` replaced by its seven tasks, and `nano_beir` by its thirteen."""
    suites: dict[str, Iterable[str]] = {"sts": HUB_TASKS, NANO_BEIR_ALL: NANO_BEIR}
    return [name for task in tasks for name in suites.get(task, (task,))]


def task_source(task: str, config: EvaluateConfig) -> SourceConfig | RetrievalConfig:
    """Return where a task's data is; the task is a known name, a file in format A, or a retrieval set.

    Raises:
        ConfigError: it is none of these.

    """
    name = ALIASES.get(task, task)
    nano = nano_beir_set(task)
    if nano is not None:
        return replace(nano, split=config.split or nano.split)
    if is_retrieval_folder(Path(task)) or task.startswith((BEIR_OWNER, f"{NANO_BEIR_OWNER}/")):
        return RetrievalConfig(task, split=config.split)
    if name in HUB_TASKS:
        return SourceConfig(HUB_TASKS[name], split="test", columns=dict(HUB_COLUMNS))
    if not Path(task).exists() and "/" not in task and "." not in task:
        known = (*HUB_TASKS, "sts", *NANO_BEIR, NANO_BEIR_ALL)
        raise ConfigError(
            f"tasks={task} is not known{did_you_mean(task, known) or '.'} Choose from {', '.join(known)}, or "
            f"give a file in format A, or a folder with queries, corpus and judgements."
        )
    return SourceConfig(task, split="test", columns=config.columns, label_map=config.label_map)


def _check_kinds(sources: Mapping[str, SourceConfig | RetrievalConfig], config: EvaluateConfig) -> None:
    """Raise ConfigError for a setting that has no effect on any of the tasks."""
    retrieval = [name for name, source in sources.items() if isinstance(source, RetrievalConfig)]
    if config.ese_grid and retrieval:
        raise ConfigError(
            f"ese_grid=true scores pairs with labels, but {retrieval[0]} has queries and passages: leave one out."
        )
    if config.split is not None and not retrieval:
        raise ConfigError(
            f"split={config.split} has no effect on pairs with labels: leave it out, or add a task with queries and "
            f"judgements."
        )
