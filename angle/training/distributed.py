"""The global batch: every process's embeddings, with gradient, so that the loss is that of all rows."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from angle.errors import TrainingError
from angle.structures import Structure


class _AllGather(torch.autograd.Function):
    """Concatenate equal shapes of all processes; the gradient of a process's own part is summed over all.

    Every process computes the same global loss, so the W sums hold W times the gradient; DDP's average over
    processes takes that factor out again, and the result is the gradient of one process with all rows.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        parts = [torch.empty_like(value) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, value.contiguous())
        ctx.rows = len(value)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].contiguous().clone()
        dist.all_reduce(gradient)
        first = dist.get_rank() * ctx.rows
        return gradient[first : first + ctx.rows]


def gather_rows(value: Tensor) -> Tensor:
    """Return the rows of all processes, in the order of ranks, with gradient; processes may have unequal many."""
    counts = torch.tensor([len(value)], device=value.device)
    all_counts = [torch.empty_like(counts) for _ in range(dist.get_world_size())]
    dist.all_gather(all_counts, counts)
    sizes = [int(count) for count in all_counts]
    padded = torch.cat([value, value.new_zeros(max(sizes) - len(value), *value.shape[1:])])
    gathered: Tensor = _AllGather.apply(padded)  # type: ignore[no-untyped-call]
    parts = torch.split(gathered, max(sizes))
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def check_equal_weights(model: nn.Module) -> None:
    """Check that all processes hold the same weights, bit for bit; they drift apart when gradients are not shared.

    Raises:
        TrainingError: they do not.

    """
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return
    weights = [parameter.detach() for parameter in model.parameters() if parameter.requires_grad]
    own = torch.stack([torch.stack([w.double().sum(), w.double().square().sum()]) for w in weights])
    all_sums = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(all_sums, own)
    if not all(torch.equal(own, other) for other in all_sums):
        raise TrainingError(
            "The processes' weights differ after training, so their gradients were not shared and the result is that "
            "of one process's rows alone. This is a defect of this program or of its libraries: please report it, with "
            "the run's run.json."
        )


def gather_batch(embeddings: Tensor, structure: Structure, processes: int) -> tuple[Tensor, Structure]:
    """Return the embeddings and the structure of the global batch; for one process they are what they were.

    Args:
        embeddings: (N, D) of this process's distinct texts.
        structure: of this process's B rows.
        processes: how many take part.

    Returns:
        Embeddings (W B R, D), row by row and role by role, and the structure that points into them.

    """
    if processes == 1:
        return embeddings, structure
    roles = gather_rows(embeddings.float()[structure.index])  # (W B, R, D)
    index = torch.arange(roles.shape[0] * roles.shape[1], device=roles.device).view(roles.shape[:2])
    labels = None if structure.labels is None else gather_rows(structure.labels)
    return roles.flatten(0, 1), Structure(structure.format, index, gather_rows(structure.text_ids), labels)
