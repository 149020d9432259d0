"""Folders of runs and sweeps that reports are about: small real runs, and sweeps whose scores are made up."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from conftest import sample_rows, write_jsonl

from angle import TrainConfig, build_config, fit
from angle.evaluation.evaluator import RowValues
from angle.evaluation.predictions import AFTER, Predictions

#: A text that would do harm in a page that trusts it.
HOSTILE = "</script><img src=x onerror=alert(1)> {{ 7 * 7 }} & fox"


def train(
    folder: Path,
    data_format: str = "A",
    *,
    valid_rows: Sequence[Mapping[str, Any]] | None = None,
    groups: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Path:
    """Train for a moment by these settings of the group train, and of other groups, and return the run's folder."""
    purpose = "valid_sts" if data_format == "A" else "valid"
    rows = sample_rows(data_format, "validation", 30) if valid_rows is None else list(valid_rows)
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "train": write_jsonl(folder / "train.jsonl", sample_rows(data_format, "train", 64)),
        purpose: write_jsonl(folder / "valid.jsonl", rows),
    }
    sources = {name: {"name_or_path": str(file)} for name, file in files.items()}
    values = {
        "max_steps": 6, "batch_size": 16, "eval_steps": 2, "logging_steps": 2, "output_dir": str(folder / "run"),
    } | settings  # fmt: skip
    groups = {"data_format": {"graded": False}, **(groups or {})}  # so that A has all terms
    data = sources | groups.pop("data", {})
    return fit(build_config({"data": data, "train": values, **groups}, TrainConfig)).folder


def make_sweep(
    folder: Path,
    axes: Mapping[str, Sequence[str]],
    gains: Mapping[tuple[str, str], float],
    *,
    seeds: int = 3,
    rows: int = 200,
    spread: float = 0.005,
) -> Path:
    """Write what a sweep leaves whose jobs score 0.7, more or less by each setting's gain, by seed and by row.

    Args:
        folder: the sweep's.
        axes: the values of each setting.
        gains: by how much a setting's value is better, by (setting, value).
        seeds: runs of each combination.
        rows: validation rows.
        spread: standard deviation of the seeds.

    """
    rng = np.random.default_rng(1)
    easy, jobs = rng.normal(0, 0.2, rows), []
    for values in product(*axes.values()):
        for seed in range(1, seeds + 1):
            settings = dict(zip(axes, values, strict=True))
            score = 0.7 + sum(gains.get(item, 0.0) for item in settings.items()) + rng.normal(0, spread)
            job = folder / "_".join([*(f"{name}-{value}" for name, value in settings.items()), f"seed-{seed}"])
            job.mkdir(parents=True)
            of_rows = RowValues(score + easy + rng.normal(0, 0.02, rows))
            nothing = np.zeros((0, 2), np.int64)
            predictions = Predictions(
                "triplet_accuracy", 10, "rows", "B", of_rows, [], nothing[:, 0], nothing, np.zeros((0, 4), np.float16)
            )
            predictions.save(job, AFTER)
            measured = of_rows.metric()
            lines = [{"step": step, "valid/triplet_accuracy": measured * step / 10} for step in (0, 5, 10)]
            write_jsonl(job / "metrics.jsonl", lines)
            jobs.append({
                "settings": settings | {"train.seed": str(seed)}, "folder": str(job), "status": "finished",
                "error": None, "metric": "triplet_accuracy", "score": measured, "seconds": 2.0,
                "result": {"best_score": measured},
            })  # fmt: skip
    write_sweep(folder, jobs)
    return folder


def write_sweep(folder: Path, jobs: Sequence[Mapping[str, Any]], defaults: Mapping[str, Any] | None = None) -> None:
    (folder / "sweep.json").write_text(json.dumps({"defaults": dict(defaults or {}), "jobs": list(jobs)}))


def read_jobs(folder: Path) -> list[dict[str, Any]]:
    jobs: list[dict[str, Any]] = json.loads((folder / "sweep.json").read_text())["jobs"]
    return jobs
