"""What evaluate.py does: tasks in, a table and files out."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor
from tqdm import tqdm

from angle.config import CONFIG_FILE, EvaluateConfig, SourceConfig, TrainConfig
from angle.config.build import load_config
from angle.data.corpus import Corpus
from angle.data.roles import OWN_TEST_SET, TASKS, default_split
from angle.distributed.process_group import best_device
from angle.errors import ConfigError
from angle.evaluation.encoding import encode_distributed
from angle.evaluation.sts import ALIASES, HUB_TASKS, PairScores, load_sts, pair_scores, task_source
from angle.modeling.description import TINY
from angle.modeling.encoder import Encoder
from angle.modeling.kernel_choice import choose_kernels, choose_together
from angle.modeling.tokenizer import TokenContract

if TYPE_CHECKING:
    from accelerate import PartialState

#: The results files of an evaluation and of a grid, which also write others.
RESULTS, GRID = "results.json", "grid.json"


@dataclass(frozen=True)
class Evaluation:
    """The outcome of an evaluation."""

    results: dict[str, dict[str, float]]
    """Metrics by task, correlations between -1 and 1."""
    path: Path
    """results.json"""
    contract: TokenContract
    """How texts reached the model, and how its states became embeddings."""

    @property
    def mean_spearman(self) -> float:
        """Mean over all tasks of the Spearman correlation of the cosine."""
        return float(np.mean([row["spearman_cosine"] for row in self.results.values()]))


def evaluate(config: EvaluateConfig, processes: PartialState | None = None) -> Evaluation:
    """Score a model on every task, with the prompt and the pooling it was trained with.

    Args:
        config: the model, and what to measure it on.
        processes: those of a launcher that split the work; all of them call this, and the main one writes the results.

    Raises:
        ConfigError, DataError: a model or a task that cannot be loaded, or a place that cannot be written to.

    """
    opened = open_tasks(config, processes)
    pairs = {name: pair_scores(embeddings, corpus) for name, corpus, embeddings in opened.encoded(config.batch_size)}
    positive_above = _positive_above(config, opened.run)
    results = {name: scored.metrics(positive_above) for name, scored in pairs.items()}
    path, contract = opened.folder / RESULTS, opened.encoder.contract
    if opened.is_main:
        save_results(path, config.model.name_or_path, contract, results, pairs)
    return Evaluation(results, path, contract)


@dataclass(frozen=True)
class OpenTasks:
    """A model, and the tasks to measure it on."""

    folder: Path
    """Where the results are written."""
    run: TrainConfig | None
    """The settings of the run if the task is its own test set, else None."""
    encoder: Encoder
    sources: dict[str, SourceConfig]
    processes: PartialState | None
    """Those that split the work, None for just this one."""

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes."""
        return self.processes is None or self.processes.is_main_process

    def encoded(self, batch_size: int, depths: Sequence[int] | None = None) -> Iterator[tuple[str, Corpus, Tensor]]:
        """Yield each task's name, its pairs, and the embeddings of their texts, (N, D) or, for K depths, (N, K, D)."""
        role = TASKS if self.run is None else OWN_TEST_SET
        for name, source in self.sources.items():
            corpus = load_sts(source, role, self.encoder.tokenizer)
            own = -(-len(corpus.tokens) // (1 if self.processes is None else self.processes.num_processes))
            hide = None if self.is_main else True  # None hides it if the output is not a terminal
            with tqdm(total=own, desc=name, unit="text", disable=hide, leave=False) as bar:
                encode = partial(self.encoder.encode_tokens, batch_size=batch_size, progress=bar.update, depths=depths)
                embeddings = encode_distributed(encode, corpus.tokens, self.processes)
            yield name, corpus, embeddings


def open_tasks(config: EvaluateConfig, processes: PartialState | None = None) -> OpenTasks:
    """Load the model, and find its tasks and a folder for the results.

    Args:
        config: the model, and what to measure it on.
        processes: as in `evaluate`.

    Raises:
        ConfigError: a model that cannot be loaded, an unknown task, or a place that cannot be written to.

    """
    folder = _new_folder(config)
    run = None if config.tasks is not None else _own_config(config)
    sources = _sources(config, run)
    choose = choose_kernels if processes is None else choose_together
    encoder = Encoder.load(config.model, config.pooling, choose=choose)
    encoder.to(best_device() if processes is None else processes.device).eval()
    return OpenTasks(folder, run, encoder, sources, processes)


def _new_folder(config: EvaluateConfig) -> Path:
    """Return the folder for results, which is checked first, so that nothing is computed in vain."""
    folder = Path(config.output_dir or "evaluations")
    there = next((place for place in (folder, *folder.parents) if place.exists()), folder)
    if there.is_file():
        raise ConfigError(f"output_dir={folder} cannot be a folder: {there} is a file; give a new folder.")
    if (folder / (GRID if config.ese_grid else RESULTS)).exists():
        raise ConfigError(f"output_dir={folder} holds results already; give a new folder.")
    return folder


def _positive_above(config: EvaluateConfig, run: TrainConfig | None) -> float:
    """Return the label above which a pair is positive: as given, or else, on a run's own test set, as in training."""
    if config.positive_above is not None:
        return config.positive_above
    trained_with = None if run is None else run.loss.positive_above
    return max(0.5, trained_with or 0.0)


def _own_config(config: EvaluateConfig) -> TrainConfig | None:
    """Return the settings saved with the model if it is a training run, else None."""
    saved = Path(config.model.name_or_path) / CONFIG_FILE
    return load_config(saved) if saved.is_file() else None


def _sources(config: EvaluateConfig, run: TrainConfig | None) -> dict[str, SourceConfig]:
    """Return what to measure on, by name: the tasks given, or else the run's own test set."""
    if config.tasks is not None:
        return {task: task_source(task, config.columns, config.label_map) for task in expand_tasks(config.tasks)}
    own = run.data.test if run is not None else SourceConfig()
    if not own.names():
        name = config.model.name_or_path
        looked_for = "" if Path(name).exists() or name == TINY else f"There is no folder {name} here. "
        raise ConfigError(
            f"{looked_for}tasks is missing, and the model is no run with a test set of its own: give for example "
            "tasks=[stsb], tasks=[sts] (all seven), or tasks=[pairs.jsonl]."
        )
    # Settings given here win, so that the advice of a message about columns or labels works here too.
    own = replace(own, columns=config.columns or own.columns, label_map=config.label_map or own.label_map)
    return {f"{', '.join(own.names())} ({own.split or default_split(OWN_TEST_SET)})": own}


def expand_tasks(tasks: list[str]) -> list[str]:
    """Return the tasks with `sts` replaced by its seven tasks."""
    return [name for task in tasks for name in (HUB_TASKS if task == "sts" else (task,))]


def average(results: dict[str, dict[str, float]]) -> float | None:
    """Return the mean Spearman correlation of the seven STS tasks, None unless all are present."""
    named = {ALIASES.get(name, name): row for name, row in results.items()}
    if not all(name in named for name in HUB_TASKS):
        return None
    return float(np.mean([named[name]["spearman_cosine"] for name in HUB_TASKS]))


def save_results(
    path: Path,
    model: str,
    contract: TokenContract,
    results: dict[str, dict[str, float]],
    pairs: dict[str, PairScores],
) -> None:
    """Write the results, and next to them each task's pairs as a table.

    A non-finite number, which JSON cannot represent, becomes null: the threshold that calls all or none positive.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for number, (_, scored) in enumerate(pairs.items(), 1):
        with (path.parent / f"pairs-{number}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["label", *scored.scores])
            writer.writerows(zip(scored.labels, *scored.scores.values(), strict=True))
    content = {
        "model": model,
        "pooling": contract.pooling,
        "max_length": contract.max_length,
        "prompt": contract.prompt,
        "tasks": {
            task: {name: value if math.isfinite(value) else None for name, value in metrics.items()}
            for task, metrics in results.items()
        },
        "average_spearman": average(results),
        "pairs": {task: f"pairs-{number}.csv" for number, task in enumerate(pairs, 1)},
    }
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def table(results: dict[str, dict[str, float]]) -> str:
    """Return results as a table for a terminal, with correlations and accuracy times 100."""
    heads = ("pairs", "cosine", "dot", "Manhattan", "Euclidean", "cosine", "dot", "Manhattan", "Euclidean", "accuracy")
    keys = (
        "pairs",
        *(f"{kind}_{name}" for kind in ("spearman", "pearson") for name in ("cosine", "dot", "manhattan", "euclidean")),
        "accuracy",
    )
    width = max([len(name) for name in results] + [len("average")])
    lines = [
        f"{'':{width}}  {'':>6}  {'Spearman':<38}  {'Pearson':<38}",
        f"{'task':{width}}  " + "  ".join(f"{head:>{_width(head)}}" for head in heads),
    ]
    for name, row in results.items():
        cells = [f"{row[key]:.0f}" if key == "pairs" else f"{100 * row[key]:.2f}" for key in keys]
        lines.append(
            f"{name:{width}}  " + "  ".join(f"{cell:>{_width(head)}}" for cell, head in zip(cells, heads, strict=True))
        )
    mean = average(results)
    if mean is not None:
        lines.append(f"{'average':{width}}  {'':>{_width('pairs')}}  {100 * mean:>{_width('cosine')}.2f}")
    return "\n".join(lines)


def _width(head: str) -> int:
    return max(len(head), 6)
