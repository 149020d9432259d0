"""A dry run: build everything, train on the longest batch once, and report what it takes."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from angle.config import TrainConfig
from angle.data.batching import InMemoryTrainingData, TrainingData, collate
from angle.kernels.allocator import keep_freed_memory
from angle.structures import Batch
from angle.training import setup
from angle.training.describe import banner
from angle.training.memory import Allocations
from angle.training.notes import notes_on
from angle.training.step import Step

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class DryRun:
    """What a step on the longest batch takes, for one process."""

    which: str
    rows: int
    texts: int
    tokens: int
    memory: dict[str, int]
    """Bytes by part."""
    allocated: int | None
    """Peak bytes held by the GPU's allocator; None on a CPU."""
    seconds: float
    """Duration of an optimiser step."""
    rows_per_step: int
    banner: str
    notes: list[str]
    """Advice on the settings."""

    def __str__(self) -> str:
        """Return the report."""
        total = sum(self.memory.values())
        lines = [
            self.banner,
            *(f"{'note':8}{note}" for note in self.notes),
            "",
            f"{self.which}: {self.rows} rows, {self.texts} different texts, {self.tokens:,} tokens",
        ]
        lines += [
            f"  {name:42}{size / 2**20:10,.1f} MiB"
            for name, size in (self.memory | {"together, at most": total}).items()
        ]
        if self.allocated is not None:
            lines.append(f"  {'the most that the GPU held':42}{self.allocated / 2**20:10,.1f} MiB")
        speed = self.rows_per_step / self.seconds
        lines += [f"  {'time of a step':42}{self.seconds:10,.2f} s    {speed:,.1f} rows/s", "", "Nothing was written."]
        return "\n".join(lines)


def dry_run(config: TrainConfig) -> DryRun:
    """Measure a forward and backward pass on the longest batch and one optimiser step; write nothing.

    Raises:
        ConfigError, DataError: anything wrong with the settings or the data.

    """
    config = replace(config, train=replace(config.train, dry_run=True))  # check its requirements whoever calls it
    accelerator = setup.start_accelerator(config)
    built = setup.build(config, accelerator)
    config, encoder = built.config, built.encoder
    trainable, teacher = built.trainable, built.teacher
    trained = [parameter for parameter in trainable.parameters() if parameter.requires_grad]
    model, optimizer = accelerator.prepare(trainable, setup.make_optimizer(trainable, config))
    which, batch = _longest_batch(built.data.train)
    batches = config.train.gradient_accumulation_steps
    model.train()

    step = Step(model, built.objective, teacher, accelerator, config.train.tokens_at_once)

    on_gpu = accelerator.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)  # so that only temporary allocations of a step are counted
    with Allocations() as made:
        step.forward_backward(batch)
    optimizer.step()
    memory = {
        "frozen weights": _bytes([*_frozen(encoder), *encoder.buffers()]),
        "trained weights": _bytes(trained),
        "gradients": _bytes(parameter.grad for parameter in trained),
        "optimiser state": _bytes(value for state in optimizer.optimizer.state.values() for value in state.values()),
        "activations": made.peak,
    }
    if teacher is not None and teacher.encoder not in (None, encoder):
        memory["teacher"] = _bytes([*_frozen(teacher.encoder), *teacher.encoder.buffers()])
    optimizer.zero_grad()
    with keep_freed_memory(accelerator.device):
        seconds = _time(accelerator, lambda: step.forward_backward(batch)) * batches + _time(
            accelerator, optimizer.step
        )
    allocated = torch.cuda.max_memory_allocated() if on_gpu else None
    rows = len(batch.rows)
    return DryRun(
        which,
        rows,
        len(batch.tokens),
        len(batch.tokens.ids),
        memory,
        allocated,
        seconds,
        rows * batches,
        banner(config, encoder, built.data, built.total_steps, accelerator),
        notes_on(config, built.data, built.total_steps),
    )


def _longest_batch(data: TrainingData) -> tuple[str, Batch]:
    """Return a batch of the rows with the most tokens, or the first batch of a stream."""
    if not isinstance(data, InMemoryTrainingData):
        return "first batch", next(data.steps(0))[0]
    corpus, batch_spec = data.corpus, data.batch_spec
    texts = corpus.draw_text_ids(np.arange(len(corpus)), seed=batch_spec.seed, epoch=0)
    longest = np.argsort(-corpus.tokens.lengths[texts].sum(axis=1), kind="stable")
    return "longest batch", collate(corpus, longest[: batch_spec.global_batch_size], 0, batch_spec)


def _time(accelerator: Accelerator, call: Any) -> float:
    on_gpu = accelerator.device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _frozen(model: torch.nn.Module) -> Iterable[Tensor]:
    """Yield the frozen weights, and the tensors that dequantise 4-bit ones."""
    for parameter in model.parameters():
        if not parameter.requires_grad:
            yield parameter
            state = getattr(parameter, "quant_state", None)
            if state is not None:
                yield from (value for value in state.as_dict(packed=True).values() if isinstance(value, Tensor))


def _bytes(tensors: Iterable[Any]) -> int:
    return sum(tensor.nbytes for tensor in tensors if isinstance(tensor, Tensor))
