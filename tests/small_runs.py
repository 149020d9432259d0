"""Small runs on the built-in sentences, built but not started."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from accelerate import Accelerator
from conftest import sample_rows, sample_rows_with_negatives, write_jsonl
from torch import nn

from angle.config import TrainConfig
from angle.config.build import build_config
from angle.training import setup
from angle.training.accelerator import start_accelerator
from angle.training.gradient_cache import GradientCache

#: Whatever an objective may have beyond a format's own terms.
OBJECTIVES: dict[str, dict[str, Any]] = {
    "plain": {},
    "all terms": {"loss": {"cosine_w": 1.0, "ibn_w": 20.0, "angle_w": 1.0}},
    "guide": {"loss": {"guide": "tiny", "guide_margin": 0.02}},
    "espresso": {"ese": {"enabled": True, "compression_size": 32}},
    "teacher": {"teacher": {"enabled": True, "name_or_path": "self", "projection": True, "mse_w": 1.0}},
    "teacher of tokens": {"teacher": {"enabled": True, "name_or_path": "self", "pooling": "tokens"}},
    "both": {
        "ese": {"enabled": True, "compression_size": 32},
        "teacher": {"enabled": True, "name_or_path": "self", "temperature": 0.5},
    },
    "adapters": {"lora": {"enabled": True, "dropout": 0.0}, "teacher": {"enabled": True, "name_or_path": "self"}},
}


def sources_of_sample(folder: Path, formats: Sequence[str], rows: int) -> dict[str, Any]:
    """Write rows of the built-in sentences in one or several formats, and return the settings of data.train."""
    sources = {}
    for name in formats:
        table = sample_rows_with_negatives(rows) if name == "B+" else sample_rows(name, "train", rows)
        sources[name.lower().rstrip("+")] = {"name_or_path": str(write_jsonl(folder / f"{name}.jsonl", table))}
    return {"sources": sources} if len(sources) > 1 else next(iter(sources.values()))


def build_on_sample(
    data_format: str, *, rows: int = 24, dropout: float = 0.0, **groups: Any
) -> tuple[setup.RunComponents, Accelerator]:
    """Return what a run on the built-in sentences works with, of which there are four batches.

    Of the formats, B+ is B with one to three negatives a row, and several are a mixture, such as A,B+.
    """
    with TemporaryDirectory() as folder:
        train = sources_of_sample(Path(folder), data_format.split(","), 4 * rows)
        data = {"train": train, **groups.pop("data", {})}
        all_terms = {"graded": False}  # also of A
        settings = {"data": data, "data_format": all_terms, "train": {"batch_size": rows}, **groups}
        config = build_config(settings, TrainConfig)
        accelerator = start_accelerator(config.train.mixed_precision)
        components = setup.build(config, accelerator)
    for module in components.trainable.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
    weights = components.trainable.projection
    if weights is not None:  # as far from the teacher as a trained one
        nn.init.normal_(weights.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    return components, accelerator


def gradient_cache_of(
    components: setup.RunComponents, accelerator: Accelerator, budget: int | None = None
) -> GradientCache:
    components.trainable.train()
    return GradientCache(components.trainable, components.objective, components.teacher, accelerator, budget)
