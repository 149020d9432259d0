"""How much memory a step takes, how much is left, and how many tokens fit."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from angle.errors import ConfigError
from angle.structures import Batch, BatchStructure, DataFormat, Tokens
from angle.training.gradient_cache import GradientCache

if TYPE_CHECKING:
    from accelerate import Accelerator

#: The fraction of free memory to plan with; the rest is reserved for what cannot be foreseen, such as fragmentation.
USABLE_FRACTION = 0.8
#: Tokens of the smaller of the two trial micro-batches.
TRIAL_TOKENS = 1024
#: Where Linux reports a container's memory.
CGROUP = Path("/sys/fs/cgroup")


def find_token_budget(
    gradient_cache: GradientCache,
    data_format: DataFormat,
    row_texts: int,
    rows: int,
    max_length: int,
    loss: int = 0,
    *,
    averaged: bool = False,
) -> int:
    """Return how many tokens of a micro-batch fit into free memory, estimated from two trial micro-batches.

    Args:
        gradient_cache: its model is not yet prepared for several processes, and there is no optimiser yet.
        data_format: the format of the rows.
        row_texts: number of texts of a row.
        rows: number of rows in a process's batch, whose loss is computed while a micro-batch is held in memory.
        max_length: number of tokens in the longest text.
        loss: which of the run's losses the rows have.
        averaged: whether there will be an average of the weights, too.

    Raises:
        ConfigError: not even the longest text fits.

    """
    row_tokens = row_texts * max_length
    trial_rows = -(-TRIAL_TOKENS // row_tokens)
    batch_of = partial(trial_batch, gradient_cache, data_format, row_texts, loss=loss)
    trials = (batch_of(count, max_length) for count in (trial_rows, 2 * trial_rows))
    small_peak, large_peak = (
        _peak_memory(gradient_cache, partial(gradient_cache.forward_backward, batch)) for batch in trials
    )
    bytes_per_token = (large_peak - small_peak) / (trial_rows * row_tokens)
    loss_batch = batch_of(rows, 1)
    loss_bytes = _peak_memory(gradient_cache, partial(_compute_loss, gradient_cache, loss_batch))
    fixed_bytes = max(2 * small_peak - large_peak, 0) + loss_bytes
    trainable_bytes = sum(p.nbytes for p in gradient_cache.model.parameters() if p.requires_grad)
    # Beside the trainable weights, there will be their gradients, the optimiser's two moments, and perhaps an average.
    later_bytes = (4 if averaged else 3) * trainable_bytes
    usable_bytes = USABLE_FRACTION * free_memory(gradient_cache.accelerator) - later_bytes
    token_budget = int((usable_bytes - fixed_bytes) / bytes_per_token)
    if token_budget < max_length:
        needed_bytes = fixed_bytes + bytes_per_token * max_length
        raise ConfigError(
            f"There is not enough memory for train.token_budget=auto: the longest text has {max_length:,} "
            f"tokens and takes, with the loss of {rows:,} rows, {needed_bytes / 2**30:.1f} GiB, of "
            f"{max(usable_bytes, 0) / 2**30:.1f} that are left beside the weights' gradients"
            f"{', average' if averaged else ''} and the optimiser: type "
            f"model.gradient_checkpointing=true, a smaller model.max_length or train.batch_size, or lora=r16."
        )
    return token_budget


def trial_batch(
    gradient_cache: GradientCache, data_format: DataFormat, row_texts: int, rows: int, length: int, *, loss: int = 0
) -> Batch:
    """Return a batch with `rows` rows per process, of distinct texts that all have `length` tokens."""
    processes = gradient_cache.accelerator.num_processes
    text_ids = np.arange(rows * row_texts)
    lengths = np.full(len(text_ids), length)
    index = torch.arange(len(text_ids) * processes).view(-1, row_texts)
    labels = torch.arange(len(index)).float() if data_format.labelled else None
    return Batch(
        tokens=Tokens(np.ones(lengths.sum(), np.int32), np.concatenate([[0], lengths.cumsum()])),
        text_ids=text_ids,
        occurrences=np.ones_like(text_ids),
        max_lengths=lengths,
        structure=BatchStructure.of_columns(data_format, index, index, labels, loss),
        token_count=lengths.sum() * processes,
        rows=text_ids[: len(index)],
    )


def _compute_loss(gradient_cache: GradientCache, batch: Batch) -> None:
    """Compute the gradient of the loss with respect to a batch's embeddings, whatever their values."""
    device = gradient_cache.accelerator.device
    with torch.no_grad():
        embedding, _ = gradient_cache.model(*batch.micro_batch(slice(0, 1), device))
    embeddings = embedding.repeat(batch.structure.num_texts, *(1 for _ in embedding.shape[1:])).requires_grad_()
    loss = gradient_cache.objective(embeddings, batch.structure.to(device))
    torch.autograd.grad(loss.total, embeddings)


def _peak_memory(gradient_cache: GradientCache, work: Callable[[], Any]) -> int:
    """Return the peak number of bytes that `work`, a part of a step, allocates."""
    model, accelerator = gradient_cache.model, gradient_cache.accelerator
    device = accelerator.device
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    model.train()
    try:
        if device.type == "cuda":  # its allocator also counts the kernels' workspace
            with accelerator.autocast():
                work()  # after the first call, libraries keep memory of their own, which is not part of the step
                before = torch.cuda.memory_allocated(device)
                torch.cuda.reset_peak_memory_stats(device)
                work()
            return int(torch.cuda.max_memory_allocated(device)) - before
        with Allocations() as allocations, accelerator.autocast():
            work()
        return int(allocations.peak)
    finally:
        model.zero_grad()


def used_memory(device: torch.device) -> int:
    """Return the peak number of bytes allocated on a GPU so far; on a CPU, what this process has resident now."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return int(psutil.Process().memory_info().rss)


def free_memory(accelerator: Accelerator) -> int:
    """Return the number of bytes that this process may still allocate."""
    device = accelerator.device
    if device.type == "cuda":
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + reserved
    free = int(psutil.virtual_memory().available)
    with suppress(OSError, ValueError, KeyError):  # not in a container, or in one that sets or reports no limit
        limit, current, stat = ((CGROUP / f"memory.{name}").read_text() for name in ("max", "current", "stat"))
        # Cached files count as used there, but are evicted when memory is requested.
        evictable = dict(line.split() for line in stat.splitlines())["inactive_file"]
        free = min(free, int(limit) - int(current) + int(evictable))
    return free // int(accelerator.num_processes)


class Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of tensors that operations allocate while it is active, and the peak of those alive at once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self._total = 0
        self._live: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs = {key for key, _ in _storages((args, kwargs))}
        for key, memory in _storages(result):
            if key not in inputs and key not in self._live:
                self._live[key] = memory.nbytes() if isinstance(memory, torch.UntypedStorage) else memory.nbytes
                self._total += self._live[key]
                weakref.finalize(memory, self._release, key)
        self.peak = max(self.peak, self._total)
        return result

    def _release(self, key: int) -> None:
        self._total -= self._live.pop(key)


def _storages(tree: Any) -> Iterator[tuple[int, torch.UntypedStorage | Tensor]]:
    """Yield each tensor's storage with its key, or the tensor itself in oneDNN's layout, which has no storage."""
    for value in tree_leaves(tree):
        if isinstance(value, Tensor):
            if value.is_mkldnn:
                yield id(value), value
            else:
                storage = value.untyped_storage()
                yield storage._cdata, storage
