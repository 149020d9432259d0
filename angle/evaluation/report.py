"""What evaluate.py does: tasks in, a table and files out."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from angle.config import CONFIG_FILE, EvaluateConfig, SourceConfig
from angle.data import sources
from angle.errors import ConfigError
from angle.evaluation.sts import ALIASES, HUB_TASKS, PairScores, load_sts, score_pairs, task_source
from angle.modeling.encoder import Encoder
from angle.settings import load_config


@dataclass(frozen=True)
class Evaluation:
    """What came out of an evaluation."""

    results: dict[str, dict[str, float]]
    """Metrics by task, correlations between -1 and 1."""
    path: Path
    """results.json"""

    @property
    def mean_spearman(self) -> float:
        """Mean over all tasks of the cosine's Spearman correlation."""
        return float(np.mean([row["spearman_cosine"] for row in self.results.values()]))


def evaluate(config: EvaluateConfig) -> Evaluation:
    """Score a model on every task, with the prompt and the pooling it was trained with.

    Raises:
        ConfigError, DataError: a model or a task that cannot be loaded.

    """
    named = _sources(config)
    encoder = Encoder.load(config.model, config.pooling)
    encoder.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    folder = Path(config.output_dir or "evaluations")
    if (folder / "results.json").exists():
        raise ConfigError(f"output_dir={folder} holds results already; give a new folder.")
    pairs: dict[str, PairScores] = {}
    for name, source in named.items():
        corpus = load_sts(source, "test", encoder.tokenizer)
        with tqdm(total=len(corpus.tokens), desc=name, unit="text", disable=None, leave=False) as bar:
            pairs[name] = score_pairs(encoder, corpus, config.batch_size, bar.update)
    results = {name: scored.metrics(config.positive_above) for name, scored in pairs.items()}
    return Evaluation(results, save_results(folder, config.model.name_or_path, results, pairs))


def _sources(config: EvaluateConfig) -> dict[str, SourceConfig]:
    """Return what to measure on, by name: the tasks that are given, else the run's own test set."""
    if config.tasks is not None:
        return {task: task_source(task, config.columns, config.label_map) for task in expand_tasks(config.tasks)}
    saved = Path(config.model.name_or_path) / CONFIG_FILE
    own = load_config(saved).data.test if saved.is_file() else SourceConfig()
    if not own.names():
        raise ConfigError(
            "tasks is missing, and the model is no run with a test set of its own: give for example "
            "tasks=[stsb], tasks=[sts] (all seven), or tasks=[pairs.jsonl]."
        )
    return {f"{', '.join(own.names())} ({own.split or sources.DEFAULT_SPLITS['test']})": own}


def expand_tasks(tasks: list[str]) -> list[str]:
    """Return the tasks with `sts` replaced by the seven."""
    return [name for task in tasks for name in (HUB_TASKS if task == "sts" else (task,))]


def average(results: dict[str, dict[str, float]]) -> float | None:
    """Return the mean Spearman of the seven tasks, None unless all are there."""
    named = {ALIASES.get(name, name): row for name, row in results.items()}
    if not all(name in named for name in HUB_TASKS):
        return None
    return float(np.mean([named[name]["spearman_cosine"] for name in HUB_TASKS]))


def save_results(folder: Path, model: str, results: dict[str, dict[str, float]], pairs: dict[str, PairScores]) -> Path:
    """Write results.json, and each task's pairs as a table, and return the first one's path."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (_, scored) in enumerate(pairs.items(), 1):
        with (folder / f"pairs-{number}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["label", *scored.scores])
            writer.writerows(zip(scored.labels, *scored.scores.values(), strict=True))
    path = folder / "results.json"
    content = {
        "model": model,
        "tasks": results,
        "average_spearman": average(results),
        "pairs": {task: f"pairs-{number}.csv" for number, task in enumerate(pairs, 1)},
    }
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return path


def table(results: dict[str, dict[str, float]]) -> str:
    """Return results as a table for a terminal, correlations and accuracy times 100."""
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
