"""Several processes that train as one: the loss is split across them, and their weights must not drift apart."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.linalg import vector_norm

from angle.distributed.process_group import all_reduce_sum
from angle.errors import TrainingError
from angle.objective.contrastive import QueryShards
from angle.training.sharding import full_tensor

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")


def query_shards(accelerator: Accelerator) -> QueryShards:
    """Return how the processes, which all hold all texts of a batch, split the queries of the contrastive loss."""
    processes = accelerator.num_processes

    def all_reduce(values: Sequence[Tensor]) -> None:
        for value in values:
            all_reduce_sum(value, processes)

    return QueryShards(accelerator.process_index, processes, all_reduce)


def from_main_process(compute: Callable[[], T], accelerator: Accelerator) -> T:
    """Return what `compute` returns on the main process, which alone calls it. Every process must call this."""
    from accelerate.utils import broadcast_object_list

    result = [compute() if accelerator.is_main_process else None]
    broadcast_object_list(result)
    return cast(T, result[0])


def check_finite_weights(model: nn.Module, step: int, recovery: str) -> None:
    """Check that the trained weights are finite. Every process must call this.

    No loss is computed from the weights that the last step before a save has made.

    Args:
        model: what is trained.
        step: the step that its weights are from.
        recovery: what is left of the run, as a sentence.

    Raises:
        TrainingError: some are not.

    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not full_tensor(vector_norm(parameter.detach(), math.inf)).isfinite():
            raise TrainingError(
                f"The weights of {name} are not finite after step {step}, so they are not saved. {recovery} Start a "
                f"new run with a lower train.learning_rate or train.weight_decay."
            )


def check_equal_weights(model: nn.Module) -> None:
    """Check that all processes hold bit-identical weights; they drift apart if gradients are not exchanged.

    Sharded weights (FSDP2) exist only once.

    Raises:
        TrainingError: the weights differ.

    """
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return
    trained = [parameter.detach() for parameter in model.parameters() if parameter.requires_grad]
    weights = [weight for weight in trained if not hasattr(weight, "full_tensor")]
    if not weights:
        return
    digest = hashlib.sha256()
    for weight in weights:
        digest.update(weight.flatten().view(torch.uint8).cpu().numpy().tobytes())
    digests: list[bytes | None] = [None] * dist.get_world_size()
    dist.all_gather_object(digests, digest.digest())
    if len(set(digests)) > 1:
        raise TrainingError(
            "The processes' weights differ after training, so their gradients were not averaged and the result is that "
            "of one process's rows alone. This is a defect of this program or of its libraries: please report it, with "
            "the run's run.json."
        )
