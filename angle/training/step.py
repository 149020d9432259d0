"""The gradient of one evaluation of the objective: a batch through student and teacher, over all processes.

The loss needs all texts at once; the encoder does not. So the texts run in micro-batches, first without a graph. The
loss then yields the gradient with respect to their embeddings. Finally each micro-batch runs again, with its graph and
the same dropout, and propagates its share of that gradient to the weights (the gradient cache of Gao, Zhang, Han and
Callan, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", 2021). Memory is that of one
micro-batch, and the result does not depend on how many there are. The last one keeps its graph and need not run again,
so a batch that fits in one micro-batch runs once.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from angle.distributed.process_group import all_gather, all_reduce_sum
from angle.kernels.linear import prepacked_weights
from angle.objective.alignment import Aligned
from angle.objective.combined import LossTerms
from angle.objective.objective import Objective
from angle.structures import Batch, Lengths, to_device
from angle.training.teacher import Teacher

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Step:
    """What an evaluation of the objective needs besides a batch."""

    model: Any
    """The `TrainableEncoder`, as prepared for several processes."""
    objective: Objective
    teacher: Teacher | None
    accelerator: Accelerator
    """Determines the device, the precision and the number of processes."""
    token_budget: int | None = None
    """Tokens of a micro-batch; None to run the whole batch as one."""

    def forward_backward(self, batch: Batch, loss_weight: float = 1.0, *, sync_gradients: bool = True) -> LossTerms:
        """Add `loss_weight` times the gradient of the global batch's loss to the weights' gradients.

        Args:
            batch: the global batch, with this process's texts.
            loss_weight: weight of this batch in the optimiser step.
            sync_gradients: whether to average the gradients over the processes, once, at the end; set for the last
                batch of an optimiser step.

        Returns:
            The loss, detached, before `loss_weight`.

        """
        accelerator = self.accelerator
        parts = micro_batches(batch.max_lengths, self.token_budget)
        random_states, found = [], []
        again = int(batch.max_lengths[: parts[-1].start].sum())
        with torch.no_grad(), accelerator.autocast(), prepacked_weights(self.model, again):
            for part in parts[:-1]:
                random_states.append(_RandomState(accelerator.device))
                found.append(self.model(*batch.micro_batch(part, accelerator.device))[0])
        with self._gradient_sync(sync_gradients and len(parts) == 1):
            kept = self.model(*batch.micro_batch(parts[-1], accelerator.device))
            found.append(kept[0].detach())
            loss, gradient = self._loss(found, batch, loss_weight)
            alignment = self._backward(batch, parts[-1], kept, gradient, loss_weight)
        for number, (part, random_state) in enumerate(zip(parts[:-1], random_states, strict=True), 2):
            with self._gradient_sync(sync_gradients and number == len(parts)):
                with random_state.restored():
                    kept = self.model(*batch.micro_batch(part, accelerator.device))
                alignment = alignment + self._backward(batch, part, kept, gradient, loss_weight)
        if self.teacher is None:
            return loss
        alignment = all_reduce_sum(alignment, accelerator.num_processes)
        total = loss.total + self.objective.teacher.weight * alignment
        return LossTerms(total, loss.terms | {"alignment": alignment})

    def _loss(self, found: list[Tensor], batch: Batch, loss_weight: float) -> tuple[LossTerms, Tensor]:
        """Return the loss of all processes' embeddings, without the alignment, and `loss_weight` of its gradient.

        Args:
            found: the embeddings of this process's micro-batches; emptied, as their memory adds to the loss's tables.
            batch: the global batch.
            loss_weight: weight of this batch in the optimiser step.

        """
        accelerator, processes = self.accelerator, self.accelerator.num_processes
        embeddings = all_gather(torch.cat(found), processes).requires_grad_()
        found.clear()
        loss = self.objective(embeddings, batch.structure.to(accelerator.device))
        (gradient,) = torch.autograd.grad(loss.total, embeddings)
        # Every process computes the whole loss, but propagates only the gradient of its own texts to the weights. The
        # exchange averages over processes, whereas the sum is needed.
        own = gradient.chunk(processes)[accelerator.process_index]
        return LossTerms(loss.total.detach(), loss.terms), own * (loss_weight * processes)

    def _gradient_sync(self, now: bool) -> Any:
        """Suppress the gradient exchange unless `now`: of a step's backward passes, only the last one needs it."""
        return nullcontext() if now else self.accelerator.no_sync(self.model)

    def _backward(
        self, batch: Batch, part: slice, output: tuple[Tensor, Tensor | None], gradient: Tensor, loss_weight: float
    ) -> Tensor:
        """Backpropagate the gradient at some embeddings to the weights; return their texts' part of the alignment."""
        embeddings, states = output
        # The proxy's gradient is the given one. It is a scalar, so that loss scaling (fp16) applies to it.
        proxy, alignment = (embeddings * gradient[part]).sum(), gradient.new_zeros(())
        if self.teacher is not None:
            assert states is not None
            ids, lengths = batch.micro_batch(part, self.accelerator.device)
            with self.accelerator.autocast():
                targets = self.teacher(ids, lengths, batch.text_ids[part])
            weights = to_device(batch.weights(part, of_tokens=self.teacher.of_tokens), states.device)
            alignment = self.objective.alignment(Aligned(states, targets, weights))
            proxy = proxy + self.objective.teacher.weight * loss_weight * self.accelerator.num_processes * alignment
        self.accelerator.backward(proxy)
        return alignment.detach()


def micro_batches(max_lengths: Lengths, token_budget: int | None) -> list[slice]:
    """Split texts into consecutive parts within a token budget, as few and as even as possible.

    The fewer tokens the largest part has, the less memory a step takes; the more the last one has, the less is run
    again. A text longer than the budget is a part of its own.

    Args:
        max_lengths: (M,) maximum number of tokens of each text.
        token_budget: maximum number of tokens of a part; None for a single part.

    """
    if token_budget is None:
        return [slice(0, len(max_lengths))]
    ends = max_lengths.cumsum()
    fewest = len(_cut(ends, token_budget))
    even = min(int(ends[-1]) // fewest, token_budget)
    enough = bisect_left(range(even, token_budget), True, key=lambda most: len(_cut(ends, most)) <= fewest)
    return _cut(ends, even + enough)


def _cut(ends: Lengths, most: int) -> list[slice]:
    """Return parts that each take as many texts as fit into `most` tokens, but at least one.

    Args:
        ends: (M,) cumulative number of tokens up to and including each text.
        most: maximum number of tokens of a part.

    """
    parts, first, tokens = [], 0, 0
    while first < len(ends):
        following = max(int(np.searchsorted(ends, tokens + most, "right")), first + 1)
        parts.append(slice(first, following))
        first, tokens = following, int(ends[following - 1])
    return parts


class _RandomState:
    """The RNG state, so that the same random numbers can be drawn again."""

    def __init__(self, device: torch.device) -> None:
        self._devices = [device] if device.type == "cuda" else []
        self._state = torch.get_rng_state(), [torch.cuda.get_rng_state(device) for device in self._devices]

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Draw the same numbers again; afterwards continue from the previous state."""
        with torch.random.fork_rng(self._devices):
            torch.set_rng_state(self._state[0])
            for device, state in zip(self._devices, self._state[1], strict=True):
                torch.cuda.set_rng_state(state, device)
            yield
