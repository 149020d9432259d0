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
from angle.training.step import Step

if TYPE_CHECKING:
    from accelerate import Accelerator

#: The share of free memory to plan with; the rest is reserved for the unforeseen, such as fragmentation.
PLANNED = 0.8
#: Tokens of the smaller of the two trial micro-batches.
TRIAL_TOKENS = 1024
#: Where Linux reports a container's memory.
CONTAINER = Path("/sys/fs/cgroup")


def find_token_budget(step: Step, data_format: DataFormat, rows: int, longest: int) -> int:
    """Return how many tokens of a micro-batch fit into free memory, estimated from two trial micro-batches.

    Args:
        step: its model is not yet prepared for several processes, and there is no optimiser yet.
        data_format: the format of the rows.
        rows: number of rows in a process's batch, whose loss is computed while a micro-batch is held in memory.
        longest: number of tokens in the longest text.

    Raises:
        ConfigError: not even the longest text fits.

    """
    texts = len(data_format.roles)
    few = -(-TRIAL_TOKENS // (longest * texts))
    once, twice = (
        _peak_of(step, partial(step.forward_backward, _trial(step, data_format, n * few, longest))) for n in (1, 2)
    )
    each = (twice - once) / (few * texts * longest)
    of_loss = _peak_of(step, partial(_compute_loss, step, _trial(step, data_format, rows, 1)))
    fixed = max(2 * once - twice, 0) + of_loss
    trained = sum(p.nbytes for p in step.model.parameters() if p.requires_grad)
    free = PLANNED * _free(step.accelerator) - 3 * trained  # gradients, and the optimiser's two moments
    budget = int((free - fixed) / each)
    if budget < longest:
        raise ConfigError(
            f"train.token_budget=auto found no room: the longest text has {longest:,} tokens and takes, with the loss "
            f"of {rows:,} rows, {(fixed + each * longest) / 2**30:.1f} GiB, of {max(free, 0) / 2**30:.1f} that are "
            f"left beside the weights' gradients and the optimiser: type model.gradient_checkpointing=true, a smaller "
            f"model.max_length or train.batch_size, or lora=r16."
        )
    return budget


def _trial(step: Step, data_format: DataFormat, rows: int, length: int) -> Batch:
    """Return a batch with `rows` rows per process, of texts of the given length."""
    roles, processes = len(data_format.roles), step.accelerator.num_processes
    texts = np.arange(rows * roles)
    lengths = np.full(len(texts), length)
    index = torch.arange(len(texts) * processes).view(-1, roles)
    structure = BatchStructure(
        data_format, index, index, torch.arange(len(index)).float() if data_format.labelled else None
    )
    tokens = Tokens(np.ones(lengths.sum(), np.int32), np.concatenate([[0], lengths.cumsum()]))
    return Batch(tokens, texts, np.ones_like(texts), lengths, structure, lengths.sum() * processes, texts[: len(index)])


def _compute_loss(step: Step, batch: Batch) -> None:
    """Compute the gradient of the loss with respect to a batch's embeddings, whatever their values."""
    device = step.accelerator.device
    with torch.no_grad():
        one, _ = step.model(*batch.micro_batch(slice(0, 1), device))
    embeddings = one.repeat(batch.structure.index.numel(), *(1 for _ in one.shape[1:])).requires_grad_()
    loss = step.objective(embeddings, batch.structure.to(device))
    torch.autograd.grad(loss.total, embeddings)


def _peak_of(step: Step, work: Callable[[], Any]) -> int:
    """Return the peak number of bytes that part of a step holds."""
    device = step.accelerator.device
    for parameter in step.model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    step.model.train()
    try:
        if device.type == "cuda":  # its allocator also counts the kernels' workspace
            with step.accelerator.autocast():
                work()  # after the first call, libraries keep memory of their own, which is not part of the step
                before = torch.cuda.memory_allocated(device)
                torch.cuda.reset_peak_memory_stats(device)
                work()
            return int(torch.cuda.max_memory_allocated(device)) - before
        with Allocations() as made, step.accelerator.autocast():
            work()
        return int(made.peak)
    finally:
        step.model.zero_grad()


def _free(accelerator: Accelerator) -> int:
    """Return the number of bytes that this process may still allocate."""
    device = accelerator.device
    if device.type == "cuda":
        own = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + own
    free = int(psutil.virtual_memory().available)
    with suppress(OSError, ValueError, KeyError):  # not in a container, or in one that sets or reports no limit
        limit, used, parts = ((CONTAINER / f"memory.{name}").read_text() for name in ("max", "current", "stat"))
        # Cached files count as used there, but are evicted when memory is requested.
        files = dict(line.split() for line in parts.splitlines())["inactive_file"]
        free = min(free, int(limit) - int(used) + int(files))
    return free // int(accelerator.num_processes)


class Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of tensors that operations allocate while it is active, and the peak of those alive at once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self._total = 0
        self._live: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {key for key, _ in _memory((args, kwargs))}
        for key, memory in _memory(result):
            if key not in given and key not in self._live:
                self._live[key] = memory.nbytes() if isinstance(memory, torch.UntypedStorage) else memory.nbytes
                self._total += self._live[key]
                weakref.finalize(memory, self._forget, key)
        self.peak = max(self.peak, self._total)
        return result

    def _forget(self, key: int) -> None:
        self._total -= self._live.pop(key)


def _memory(tree: Any) -> Iterator[tuple[int, torch.UntypedStorage | Tensor]]:
    """Yield each tensor's storage with its key, or the tensor itself in oneDNN's layout, which has no storage."""
    for value in tree_leaves(tree):
        if isinstance(value, Tensor):
            if value.is_mkldnn:
                yield id(value), value
            else:
                storage = value.untyped_storage()
                yield storage._cdata, storage
