"""What evaluate.py does: tasks in, a table and files out."""

from __future__ import annotations

import csv
import json
import math
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from angle.config import EvaluateConfig, enumerate_words
from angle.evaluation.evaluators.retrieval import RetrievalEvaluator
from angle.evaluation.evaluators.sts import DEFAULT_POSITIVE_ABOVE, PairScores, StsEvaluator
from angle.evaluation.retrieval_results import (
    NDCG,
    QueryScores,
    retrieval_average,
    retrieval_table,
    short_names,
    split_kinds,
)
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
    """Metrics by task, between -1 and 1: those of the tasks with pairs first."""
    path: Path
    """The file with the results, results.json."""
    embedding_config: EmbeddingConfig
    """How texts reached the model, and how its states became embeddings."""

    @property
    def score(self) -> float:
        """Mean over all tasks of the Spearman correlation of the cosine, or of nDCG@10."""
        return float(np.mean([metrics.get("spearman_cosine", metrics.get(NDCG)) for metrics in self.results.values()]))

    def __str__(self) -> str:
        """Return a table of the tasks with pairs, and one of those with queries."""
        pairs, queries = split_kinds(self.results)
        return "\n\n".join([*([table(pairs)] if pairs else []), *([retrieval_table(queries)] if queries else [])])

    @property
    def saved_files(self) -> str:
        """What was written, in words."""
        kinds = zip(("pair", "query"), split_kinds(self.results), strict=True)
        units = enumerate_words([f"{unit}'s" for unit, results in kinds if results])
        return f"{self.path}, with every {units} scores beside it"


def evaluate(config: EvaluateConfig, processes: PartialState | None = None) -> Evaluation:
    """Score a model on every task, with the prompt and the pooling it was trained with.

    Args:
        config: the model, and what to measure it on.
        processes: those of a launcher that split the work; all of them call this, and the main one writes the results.

    Raises:
        ConfigError, DataError: a model or a task that cannot be loaded, or an output folder that is not writable.

    """
    tasks = load_tasks(config, processes)
    pairs = {name: StsEvaluator(corpus).score_pairs(encode) for name, corpus, encode in tasks.pairs()}
    results = {name: scored.metrics(tasks.positive_above) for name, scored in pairs.items()}
    device = tasks.encoder.device
    queries = {
        name: QueryScores.of(queries, RetrievalEvaluator(queries, device=device).query_metrics(encode))
        for name, queries, encode in tasks.retrieval_sets()
    }
    results |= {name: scored.metrics() for name, scored in queries.items()}
    path, embedding_config = tasks.folder / RESULTS_FILE, tasks.encoder.embedding_config
    if tasks.is_main:
        save_results(path, config.model.name_or_path, embedding_config, results, {**pairs, **queries})
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
    scored: Mapping[str, PairScores | QueryScores],
) -> None:
    """Write the results, and next to them each task's pairs or queries as a table.

    A non-finite number, which JSON cannot represent, becomes null: the threshold that calls all or none positive.
    """
    make_folder(path.parent)
    files: dict[str, dict[str, str]] = {"pairs": {}, "queries": {}}
    for task, of_task in scored.items():
        kind = "pairs" if isinstance(of_task, PairScores) else "queries"
        files[kind][task] = f"{kind}-{len(files[kind]) + 1}.csv"
        text = StringIO(newline="")
        writer = csv.writer(text)
        if isinstance(of_task, PairScores):
            writer.writerow(["label", *of_task.scores])
            writer.writerows(zip(of_task.labels, *of_task.scores.values(), strict=True))
        else:
            writer.writerow(["query", *of_task.values])
            writer.writerows(zip(of_task.query_ids, *of_task.values.values(), strict=True))
        write_durably(path.parent / files[kind][task], text.getvalue())
    content = {
        "model": model,
        "pooling": embedding_config.pooling,
        "max_length": embedding_config.max_length,
        "prompt": embedding_config.prompt,
        "prompts": embedding_config.prompts,
        "tasks": {
            task: {name: value if math.isfinite(value) else None for name, value in metrics.items()}
            for task, metrics in results.items()
        },
        "average_spearman": average(results),
        "average_ndcg@10": retrieval_average(results),
        **files,
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
    names = dict(zip(results, short_names(list(results), NAME_COLUMNS), strict=True))
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
