"""What evaluate.py does: tasks in, a table and files out."""

from __future__ import annotations

import csv
import json
import math
import textwrap
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from angle.config import EvaluateConfig
from angle.evaluation.evaluators.sts import DEFAULT_POSITIVE_ABOVE, PairScores, StsEvaluator
from angle.evaluation.tasks import ALIASES, HUB_TASKS, RESULTS_FILE, load_tasks
from angle.files import make_folder, write_durably
from angle.modeling.embedding_config import EmbeddingConfig
from angle.terminal import COLUMNS

if TYPE_CHECKING:
    from accelerate import PartialState


@dataclass(frozen=True)
class Evaluation:
    """The outcome of an evaluation."""

    results: dict[str, dict[str, float]]
    """Metrics by task, correlations between -1 and 1."""
    path: Path
    """The file with the results, results.json."""
    embedding_config: EmbeddingConfig
    """How texts reached the model, and how its states became embeddings."""

    @property
    def score(self) -> float:
        """Mean over all tasks of the Spearman correlation of the cosine."""
        return float(np.mean([metrics["spearman_cosine"] for metrics in self.results.values()]))

    def __str__(self) -> str:
        """Return the table of results."""
        return table(self.results)

    @property
    def saved_files(self) -> str:
        """What was written, in words."""
        return f"{self.path}, with every pair's scores beside it"


def evaluate(config: EvaluateConfig, processes: PartialState | None = None) -> Evaluation:
    """Score a model on every task, with the prompt and the pooling it was trained with.

    Args:
        config: the model, and what to measure it on.
        processes: those of a launcher that split the work; all of them call this, and the main one writes the results.

    Raises:
        ConfigError, DataError: a model or a task that cannot be loaded, or an output folder that is not writable.

    """
    tasks = load_tasks(config, processes)
    pairs = {name: StsEvaluator(corpus).score_pairs(encode) for name, corpus, encode in tasks}
    results = {name: scored.metrics(tasks.positive_above) for name, scored in pairs.items()}
    path, embedding_config = tasks.folder / RESULTS_FILE, tasks.encoder.embedding_config
    if tasks.is_main:
        save_results(path, config.model.name_or_path, embedding_config, results, pairs)
    return Evaluation(results, path, embedding_config)


def average(results: dict[str, dict[str, float]]) -> float | None:
    """Return the mean Spearman correlation of the seven STS tasks, None unless all are present."""
    by_task = {ALIASES.get(name, name): metrics for name, metrics in results.items()}
    if not all(name in by_task for name in HUB_TASKS):
        return None
    return float(np.mean([by_task[name]["spearman_cosine"] for name in HUB_TASKS]))


def save_results(
    path: Path,
    model: str,
    embedding_config: EmbeddingConfig,
    results: dict[str, dict[str, float]],
    pairs: dict[str, PairScores],
) -> None:
    """Write the results, and next to them each task's pairs as a table.

    A non-finite number, which JSON cannot represent, becomes null: the threshold that calls all or none positive.
    """
    make_folder(path.parent)
    for number, (_, scored) in enumerate(pairs.items(), 1):
        text = StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(["label", *scored.scores])
        writer.writerows(zip(scored.labels, *scored.scores.values(), strict=True))
        write_durably(path.parent / f"pairs-{number}.csv", text.getvalue())
    content = {
        "model": model,
        "pooling": embedding_config.pooling,
        "max_length": embedding_config.max_length,
        "prompt": embedding_config.prompt,
        "tasks": {
            task: {name: value if math.isfinite(value) else None for name, value in metrics.items()}
            for task, metrics in results.items()
        },
        "average_spearman": average(results),
        "pairs": {task: f"pairs-{number}.csv" for number, task in enumerate(pairs, 1)},
    }
    write_durably(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


#: Columns of the table: metric, header, and the header above it.
TABLE_COLUMNS = (
    ("pairs", " pairs", ""),
    ("spearman_cosine", "cosine", "Spearman"),
    ("spearman_dot", "   dot", ""),
    ("spearman_manhattan", "Manhattan", ""),
    ("spearman_euclidean", "Euclidean", ""),
    ("pearson_cosine", " cosine", "Pearson"),
    ("accuracy", "accuracy", ""),
)
#: Longest name of a task in it, so that it fits.
NAME_COLUMNS = COLUMNS - sum(len(header) + 2 for _, header, _ in TABLE_COLUMNS)


def table(results: dict[str, dict[str, float]]) -> str:
    """Return the main results as a table for a terminal, with correlations and accuracy times 100."""
    names = dict(zip(results, _short_names(list(results)), strict=True))
    width = max(len(name) for name in (*names.values(), "average"))
    above = "".join(f"  {title:{len(header)}}" for _, header, title in TABLE_COLUMNS)
    lines = [
        f"{'':{width}}{above}".rstrip(),
        f"{'task':{width}}{''.join(f'  {header}' for _, header, _ in TABLE_COLUMNS)}",
    ]
    for task, metrics in results.items():
        cells = (
            f"{metrics[key]:.0f}" if key == "pairs" else f"{100 * metrics[key]:.2f}" for key, _, _ in TABLE_COLUMNS
        )
        row = "".join(f"  {cell:>{len(header)}}" for cell, (_, header, _) in zip(cells, TABLE_COLUMNS, strict=True))
        lines.append(f"{names[task]:{width}}{row}")
    mean = average(results)
    if mean is not None:
        pairs, cosine = (len(header) for _, header, _ in TABLE_COLUMNS[:2])
        lines.append(f"{'average':{width}}  {'':{pairs}}  {100 * mean:>{cosine}.2f}")
    thresholds = [(names[task], metrics["positive_above"]) for task, metrics in results.items()]
    if any(threshold != DEFAULT_POSITIVE_ABOVE for _, threshold in thresholds):
        counted = ", ".join(f"{threshold:g} in {name}" for name, threshold in thresholds)
        lines += ["", *textwrap.wrap(f"Accuracy takes pairs as positive above a label of {counted}.", COLUMNS)]
    return "\n".join(lines)


def _short_names(names: list[str]) -> list[str]:
    """Return the last part of each name that is a path, of more parts if it would not be the only one of its name."""
    names = [name.rstrip("/") for name in names]
    for parts in range(1, max(name.count("/") for name in names) + 2):
        short = ["/".join(name.split("/")[-parts:]) for name in names]
        if len(set(short)) == len(short):
            break
    end = NAME_COLUMNS - NAME_COLUMNS // 3 - 1
    return [name if len(name) <= NAME_COLUMNS else f"{name[: NAME_COLUMNS // 3]}…{name[-end:]}" for name in short]
