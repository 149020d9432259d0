"""Encode texts split across several processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from angle.distributed.process_group import all_gather
from angle.errors import ConfigError
from angle.modeling.host_copy import COPY_ELEMENTS
from angle.structures import Tokens, partition_by_length

if TYPE_CHECKING:
    from accelerate import Accelerator, PartialState


def encode_distributed(
    encode: Callable[[Tokens], Tensor], tokens: Tokens, processes: Accelerator | PartialState | None = None
) -> Tensor:
    """Return the embeddings (N, ...), float32 on the CPU, of texts split across processes, on every process.

    Args:
        encode: returns the embeddings of texts; the same on all processes.
        tokens: N texts, the same on all processes.
        processes: the processes that take part; None for just this one.

    Raises:
        ConfigError: embeddings are not finite, so they have no score.

    """
    if processes is None or processes.num_processes == 1:
        return _checked(encode(tokens))
    shards = partition_by_length(tokens.lengths, processes.num_processes)
    local = encode(tokens.take(shards[processes.process_index]))
    embeddings = torch.empty(len(tokens), *local.shape[1:])
    # Texts of each process that are gathered on the devices at a time.
    chunk_size = max(1, COPY_ELEMENTS // local[0].numel())
    for first in range(0, len(local), chunk_size):
        chunk = slice(first, first + chunk_size)
        gathered = all_gather(local[chunk].to(processes.device), processes.num_processes)
        embeddings[torch.from_numpy(shards[:, chunk].flatten())] = gathered.cpu()
    return _checked(embeddings)


def _checked(embeddings: Tensor) -> Tensor:
    """Return embeddings (N, ...), all of which are finite.

    Raises:
        ConfigError: some are not.

    """
    finite = embeddings.flatten(1).isfinite().all(dim=1)
    if not finite.all():
        raise ConfigError(
            f"The model's embeddings of {int((~finite).sum()):,} of {len(finite):,} texts are not finite, so they have "
            f"no score: its weights are damaged, or too large for their precision; give another model, or try "
            f"model.dtype=float32."
        )
    return embeddings
