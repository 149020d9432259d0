"""Memory: what is counted as allocated, what is free, and that micro-batches keep to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import OBJECTIVES, build_on_sample, gradient_cache_of

from angle.config import TrainConfig
from angle.config.build import build_config, load_config
from angle.errors import ConfigError
from angle.training import memory
from angle.training.accelerator import start_accelerator
from angle.training.loop import fit


def test_allocations_records_the_peak() -> None:
    weight = torch.ones(1000)
    with memory.Allocations() as allocations:
        first = weight + 1  # 4,000 bytes
        second = first * 2  # 4,000 more
        view = second[:10]
        first.add_(1)
        del first
        third = torch.ones(500)  # 2,000, in place of the first
    assert allocations.peak == 8000
    assert view.sum() + third.sum() > 0


def test_step_memory_is_that_of_one_micro_batch() -> None:
    components, accelerator = build_on_sample("A", rows=200)
    batch = next(components.data.train.steps(0))[0]
    for parameter in components.trainable.parameters():
        parameter.grad = torch.zeros_like(parameter)
    peaks = {}
    for budget in (None, 2000, 500, 250):
        with memory.Allocations() as allocations:
            gradient_cache_of(components, accelerator, budget).forward_backward(batch)
        peaks[budget] = allocations.peak
    assert len(batch.tokens.ids) > 2000
    assert peaks[500] < 0.4 * peaks[2000] < 0.8 * peaks[None]
    assert peaks[250] < 0.7 * peaks[500]


@pytest.mark.parametrize("data_format", ["A", "B"])
def test_memory_grows_by_six_times_the_embeddings_at_most(data_format: str) -> None:
    components, accelerator = build_on_sample(data_format, rows=4, loss={"cosine_w": 1.0, "ibn_w": 0.0, "angle_w": 1.0})
    gradient_cache = gradient_cache_of(components, accelerator, 512)
    for parameter in components.trainable.parameters():
        parameter.grad = torch.zeros_like(parameter)
    peaks, row_texts = [], len(components.data.train.formats[0].roles)
    for rows in (2000, 4000):
        batch = memory.trial_batch(gradient_cache, components.data.train.formats[0], row_texts, rows, 3)
        with memory.Allocations() as allocations:
            gradient_cache.forward_backward(batch)
        peaks.append(allocations.peak)
    embeddings, _ = components.trainable(*batch.micro_batch(slice(0, 2000), accelerator.device))
    assert peaks[1] - peaks[0] < 6 * row_texts * embeddings.nbytes


@pytest.mark.parametrize("averaged", [False, True])
@pytest.mark.parametrize("groups", [{}, OBJECTIVES["espresso"], OBJECTIVES["teacher of tokens"]], ids=str)
def test_auto_token_budget_fits_into_free_memory(
    monkeypatch: pytest.MonkeyPatch, groups: dict[str, Any], averaged: bool
) -> None:
    rows, copies = 400, 4 if averaged else 3
    components, accelerator = build_on_sample("A", rows=rows, **groups)
    batch = next(components.data.train.steps(0))[0]
    trained = sum(parameter.nbytes for parameter in components.trainable.parameters() if parameter.requires_grad)
    room = 30 * 2**20
    monkeypatch.setattr(memory, "free_memory", lambda _: int((room + copies * trained) / memory.USABLE_FRACTION))
    max_length = int(batch.max_lengths.max())
    budget = memory.find_token_budget(
        gradient_cache_of(components, accelerator), batch.structure.format, 2, rows, max_length, averaged=averaged
    )
    assert budget < batch.max_lengths.sum() / 2
    for parameter in components.trainable.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with memory.Allocations() as allocations:
        gradient_cache_of(components, accelerator, budget).forward_backward(batch)
    assert 0.6 * room < allocations.peak < 1.1 * room

    monkeypatch.setattr(memory, "free_memory", lambda _: copies * trained)
    with pytest.raises(
        ConfigError, match=r"There is not enough memory for train.token_budget=auto: the longest text has \d+ tokens"
    ):
        memory.find_token_budget(
            gradient_cache_of(components, accelerator), batch.structure.format, 2, rows, max_length, averaged=averaged
        )


def test_in_a_container_cached_files_count_as_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit less what is used, except for files that are cached in case they are read again."""
    accelerator = start_accelerator("no")
    outside = memory.free_memory(accelerator)
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    (tmp_path / "memory.current").write_text(f"{900 << 20}\n")
    (tmp_path / "memory.stat").write_text(f"anon {300 << 20}\nactive_file 7\ninactive_file {500 << 20}\n")
    (tmp_path / "memory.max").write_text(f"{1000 << 20}\n")
    assert memory.free_memory(accelerator) == min(outside, 600 << 20)
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_memory(accelerator) == pytest.approx(outside, rel=0.2)


def test_run_saves_its_auto_token_budget(tmp_path: Path) -> None:
    settings = {"train": {"token_budget": "auto", "max_steps": 2, "batch_size": 4, "output_dir": str(tmp_path / "run")}}
    fit(build_config(settings, TrainConfig))
    resolved = load_config(tmp_path / "run" / "config.yaml").train
    assert resolved.max_tokens_per_micro_batch is not None
    assert resolved.max_tokens_per_micro_batch > 10_000
    assert fit(build_config(settings, TrainConfig)).already_finished
