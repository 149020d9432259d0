"""What processes tell each other: embeddings, so that the loss is that of all rows, and single numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

from angle.errors import TrainingError
from angle.modeling.encoder import Encoder
from angle.modeling.student import Student
from angle.objective.contrastive import Workers
from angle.structures import Tokens, deal

if TYPE_CHECKING:
    from accelerate import Accelerator


def gather_equal(value: Tensor, processes: int) -> Tensor:
    """Return the rows (W M, ...) of all processes, in the order of ranks, without gradient; all have as many."""
    if processes == 1:
        return value
    together = value.new_empty(processes * len(value), *value.shape[1:])
    dist.all_gather(list(together.chunk(processes)), value.contiguous())
    return together


def encode_shared(encoder: Encoder | Student, tokens: Tokens, accelerator: Accelerator) -> Tensor:
    """Return the embeddings (N, D), float32 on the CPU, of texts that the processes share out, on all of them.

    They run in the precision of the training.
    """
    dealt = deal(tokens.lengths, accelerator.num_processes)
    with accelerator.autocast():
        own = encoder.encode_tokens(tokens.take(dealt[accelerator.process_index]))
    everyone = gather_equal(own.to(accelerator.device), accelerator.num_processes).cpu()
    embeddings = torch.empty(len(tokens), own.shape[1])
    embeddings[torch.from_numpy(dealt.flatten())] = everyone
    return embeddings


def sum_over_processes(value: Tensor, processes: int) -> Tensor:
    """Return the sum of a value over all processes."""
    if processes > 1:
        dist.all_reduce(value)
    return value


def share_out(accelerator: Accelerator) -> Workers:
    """Return all processes as those that share out the work on what they all know."""
    processes = accelerator.num_processes

    def add_up(values: Sequence[Tensor]) -> None:
        for value in values:
            sum_over_processes(value, processes)

    return Workers(accelerator.process_index, processes, add_up)


def least_of_processes(number: int, processes: int) -> int:
    """Return the smallest of all processes' numbers."""
    numbers: list[int] = [number] * processes
    if processes > 1:
        dist.all_gather_object(numbers, number)
    return min(numbers)


def check_equal_weights(model: nn.Module) -> None:
    """Check that all processes hold the same weights, bit for bit; they drift apart when gradients are not shared.

    Of weights that are shared out (FSDP2) there is only one copy.

    Raises:
        TrainingError: they do not.

    """
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return
    trained = [parameter.detach() for parameter in model.parameters() if parameter.requires_grad]
    weights = [weight for weight in trained if not hasattr(weight, "full_tensor")]
    if not weights:
        return
    own = hashlib.sha256()
    for weight in weights:
        own.update(weight.flatten().view(torch.uint8).cpu().numpy().tobytes())
    digests: list[bytes | None] = [None] * dist.get_world_size()
    dist.all_gather_object(digests, own.digest())
    if len(set(digests)) > 1:
        raise TrainingError(
            "The processes' weights differ after training, so their gradients were not shared and the result is that "
            "of one process's rows alone. This is a defect of this program or of its libraries: please report it, with "
            "the run's run.json."
        )
