"""A dry run: build everything, train on the longest batch once, and report what it takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from angle.config import TrainConfig
from angle.data.training_data import InMemoryTrainingData, TrainingData
from angle.kernels.allocator import keep_freed_memory
from angle.structures import Batch
from angle.terminal import labelled
from angle.training import setup
from angle.training.accelerator import start_accelerator
from angle.training.average import WeightAverage
from angle.training.describe import banner
from angle.training.gradient_cache import GradientCache
from angle.training.launcher import check_launcher
from angle.training.memory import Allocations
from angle.training.notes import notes_on
from angle.training.optimizer import make_optimizer
from angle.training.sharding import check_shardable

if TYPE_CHECKING:
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer


@dataclass(frozen=True)
class DryRun:
    """What a step on the longest batch takes, for one process."""

    batch_name: str
    """Which batch was measured."""
    rows: int
    """Its rows."""
    texts: int
    """Its distinct texts."""
    tokens: int
    """Their tokens."""
    memory: dict[str, int]
    """Bytes by part."""
    allocated: int | None
    """Peak bytes held by the GPU's allocator; None on a CPU."""
    seconds: float
    """Duration of an optimiser step."""
    rows_per_step: int
    """Rows that an optimiser step learns from."""
    banner: list[tuple[str, str]]
    """What a run with these settings begins with, by label."""
    notes: list[str]
    """Advice on the settings."""

    def __str__(self) -> str:
        """Return the report."""
        total = sum(self.memory.values())
        lines = [
            *(labelled(label, text) for label, text in self.banner),
            *(labelled("note", note) for note in self.notes),
            "",
            f"{self.batch_name}: {self.rows} rows, {self.texts} different texts, {self.tokens:,} tokens",
        ]
        lines += [
            f"  {name:42}{size / 2**20:10,.1f} MiB"
            for name, size in (self.memory | {"together, at most": total}).items()
        ]
        if self.allocated is not None:
            lines.append(f"  {'peak memory of the GPU':42}{self.allocated / 2**20:10,.1f} MiB")
        speed = self.rows_per_step / self.seconds
        lines += [f"  {'time of a step':42}{self.seconds:10,.2f} s    {speed:,.1f} rows/s", "", "Nothing was written."]
        return "\n".join(lines)


def dry_run(config: TrainConfig) -> DryRun:
    """Measure a forward and backward pass on the longest batch and one optimiser step; write nothing.

    Raises:
        ConfigError, DataError: anything wrong with the settings or the data.

    """
    config = replace(config, train=replace(config.train, dry_run=True))  # check its requirements whoever calls it
    check_launcher(config.train)
    check_shardable(config)
    accelerator = start_accelerator(config.train.mixed_precision)
    components = setup.build(config, accelerator)
    model, optimizer = accelerator.prepare(components.trainable, make_optimizer(components.trainable, config.train))
    token_budget = components.config.train.max_tokens_per_micro_batch
    gradient_cache = GradientCache(model, components.objective, components.teacher, accelerator, token_budget)
    batch_name, batch = _longest_batch(components.data.train)
    model.train()
    if accelerator.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    average = WeightAverage(components.trainable, config.train.average)
    average.update(step=1)
    memory = _measure_memory(components, gradient_cache, optimizer, batch)
    if average.tensors:
        memory["average of weights"] = _nbytes(average.tensors.values())
    batches = config.train.gradient_accumulation_steps
    kernels = components.encoder.kernels
    with keep_freed_memory(components.trainable, enabled=kernels is not None and kernels.has("allocator")):
        seconds = batches * _time(accelerator, lambda: gradient_cache.forward_backward(batch))
        seconds += _time(accelerator, optimizer.step)
        seconds += _time(accelerator, lambda: average.update(step=2))
    return DryRun(
        batch_name=batch_name,
        rows=len(batch.rows),
        texts=len(batch.tokens),
        tokens=len(batch.tokens.ids),
        memory=memory,
        allocated=torch.cuda.max_memory_allocated() if accelerator.device.type == "cuda" else None,
        seconds=seconds,
        rows_per_step=len(batch.rows) * batches,
        banner=banner(components.config, components.encoder, components.data, components.total_steps, accelerator),
        notes=notes_on(components.config, components.data, components.total_steps),
    )


def _measure_memory(
    components: setup.RunComponents, gradient_cache: GradientCache, optimizer: AcceleratedOptimizer, batch: Batch
) -> dict[str, int]:
    """Return the bytes that each part of a training step holds, after one step on a batch."""
    encoder, teacher = components.encoder, components.teacher
    trained = [parameter for parameter in components.trainable.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)  # so that only temporary allocations of a step are counted
    with Allocations() as allocations:
        gradient_cache.forward_backward(batch)
    optimizer.step()
    memory = {
        "frozen weights": _nbytes([*_frozen_tensors(encoder), *encoder.buffers()]),
        "trained weights": _nbytes(trained),
        "gradients": _nbytes(parameter.grad for parameter in trained),
        "optimiser state": _nbytes(value for state in optimizer.optimizer.state.values() for value in state.values()),
        "activations": allocations.peak,
    }
    if teacher is not None and teacher.encoder not in (None, encoder):
        memory["teacher"] = _nbytes([*_frozen_tensors(teacher.encoder), *teacher.encoder.buffers()])
    optimizer.zero_grad()
    return memory


def _longest_batch(data: TrainingData) -> tuple[str, Batch]:
    """Return a batch of the rows with the most tokens, or the first batch of a stream."""
    if not isinstance(data, InMemoryTrainingData):
        return "first batch", next(data.steps(0))[0]
    return "longest batch", data.longest_batch()


def _time(accelerator: Accelerator, call: Callable[[], object]) -> float:
    """Return the seconds that a call takes, until the device has finished."""
    on_gpu = accelerator.device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _frozen_tensors(model: torch.nn.Module) -> Iterable[Tensor]:
    """Yield the frozen weights, and the tensors that dequantise 4-bit ones."""
    for parameter in model.parameters():
        if not parameter.requires_grad:
            yield parameter
            state = getattr(parameter, "quant_state", None)
            if state is not None:
                yield from (value for value in state.as_dict(packed=True).values() if isinstance(value, Tensor))


def _nbytes(tensors: Iterable[Any]) -> int:
    return sum(tensor.nbytes for tensor in tensors if isinstance(tensor, Tensor))
