"""The gradient of one evaluation of the objective: a batch through student and teacher, over all processes.

The loss knows all texts at once, the encoder need not. So the texts run in micro-batches, first without a graph; the
loss gives the gradient at their embeddings; then each micro-batch runs again, with its graph and the same dropout, and
takes its share of that gradient on to the weights (the gradient cache of Gao, Zhang, Han and Callan, "Scaling Deep
Contrastive Learning Batch Size under Memory Limited Setup", 2021). Memory is that of one micro-batch, and nothing
depends on how many there are. The last one keeps its graph and need not run again: a batch that is one micro-batch runs
once.
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

from angle.modeling.linear import weights_packed
from angle.modeling.pooling import Lengths
from angle.objective.alignment import Aligned
from angle.objective.angle_loss import LossTerms
from angle.objective.objective import Objective
from angle.processes import gather_equal, sum_over_processes
from angle.structures import Batch, to_device
from angle.training.teacher import Teacher

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Step:
    """What an evaluation of the objective needs, besides a batch."""

    model: Any
    """The `Student`, as it was prepared for several processes."""
    objective: Objective
    teacher: Teacher | None
    accelerator: Accelerator
    """Says where, in which precision, and how many processes take part."""
    token_budget: int | None = None
    """Tokens of a micro-batch, None for the whole batch as one."""

    def add_gradient(self, batch: Batch, share: float = 1.0, *, exchange: bool = True) -> LossTerms:
        """Add `share` of the gradient of the global batch's loss to the weights' own, and return that loss, detached.

        Args:
            batch: the global batch, with this process's texts.
            share: of this batch in the optimiser step.
            exchange: whether to average the gradients over the processes, once, at the end: for the last batch of an
                optimiser step.

        """
        accelerator = self.accelerator
        parts = micro_batches(batch.limits, self.token_budget)
        random_states, found = [], []
        again = int(batch.limits[: parts[-1].start].sum())
        with torch.no_grad(), accelerator.autocast(), weights_packed(self.model, again):
            for part in parts[:-1]:
                random_states.append(_RandomState(accelerator.device))
                found.append(self.model(*batch.some(part, accelerator.device))[0])
        with self._exchange(exchange and len(parts) == 1):
            kept = self.model(*batch.some(parts[-1], accelerator.device))
            found.append(kept[0].detach())
            loss, gradient = self._loss(found, batch, share)
            alignment = self._backward(batch, parts[-1], kept, gradient, share)
        for number, (part, random_state) in enumerate(zip(parts[:-1], random_states, strict=True), 2):
            with self._exchange(exchange and number == len(parts)):
                with random_state.restored():
                    kept = self.model(*batch.some(part, accelerator.device))
                alignment = alignment + self._backward(batch, part, kept, gradient, share)
        if self.teacher is None:
            return loss
        alignment = sum_over_processes(alignment, accelerator.num_processes)
        total = loss.total + self.objective.teacher.weight * alignment
        return LossTerms(total, loss.terms | {"alignment": alignment})

    def _loss(self, found: list[Tensor], batch: Batch, share: float) -> tuple[LossTerms, Tensor]:
        """Return the loss of all processes' embeddings, but for the alignment, and `share` of its gradient.

        Args:
            found: the embeddings of this process's micro-batches; emptied, as they and the loss's tables add up.
            batch: the global batch.
            share: of this batch in the optimiser step.

        """
        accelerator, processes = self.accelerator, self.accelerator.num_processes
        embeddings = gather_equal(torch.cat(found), processes).requires_grad_()
        found.clear()
        loss = self.objective(embeddings, batch.structure.to(accelerator.device))
        (gradient,) = torch.autograd.grad(loss.total, embeddings)
        # Every process computes the whole loss, but takes only the gradient of its own texts to the weights. The mean
        # over processes, which the exchange makes, has to be their sum.
        own = gradient.chunk(processes)[accelerator.process_index]
        return LossTerms(loss.total.detach(), loss.terms), own * (share * processes)

    def _exchange(self, now: bool) -> Any:
        """Several backward passes a step need one exchange of gradients, in the last of them."""
        return nullcontext() if now else self.accelerator.no_sync(self.model)

    def _backward(
        self, batch: Batch, part: slice, output: tuple[Tensor, Tensor | None], gradient: Tensor, share: float
    ) -> Tensor:
        """Take the gradient at some embeddings on to the weights; return what their texts add to the alignment."""
        embeddings, states = output
        # Its gradient is the given one. As a number, so that whatever scales a loss (fp16) can do so.
        proxy, alignment = (embeddings * gradient[part]).sum(), gradient.new_zeros(())
        if self.teacher is not None:
            assert states is not None
            ids, lengths = batch.some(part, self.accelerator.device)
            with self.accelerator.autocast():
                targets = self.teacher(ids, lengths, batch.texts[part])
            weights = to_device(batch.weights(part, of_tokens=self.teacher.of_tokens), states.device)
            alignment = self.objective.alignment(Aligned(states, targets, weights))
            proxy = proxy + self.objective.teacher.weight * share * self.accelerator.num_processes * alignment
        self.accelerator.backward(proxy)
        return alignment.detach()


def micro_batches(limits: Lengths, token_budget: int | None) -> list[slice]:
    """Return consecutive parts of texts, as few as have at most so many tokens each, and as even as can be.

    The fewer tokens the largest has the less memory a step takes; the more the last has the less is run again. A text
    that is longer than the budget is a part of its own.

    Args:
        limits: (M,) tokens of each text at most.
        token_budget: None for a single part.

    """
    if token_budget is None:
        return [slice(0, len(limits))]
    ends = limits.cumsum()
    fewest = len(_cut(ends, token_budget))
    even = min(int(ends[-1]) // fewest, token_budget)
    enough = bisect_left(range(even, token_budget), True, key=lambda most: len(_cut(ends, most)) <= fewest)
    return _cut(ends, even + enough)


def _cut(ends: Lengths, most: int) -> list[slice]:
    """Return parts that each take as many texts as have at most so many tokens together, but at least one.

    Args:
        ends: (M,) tokens of the texts up to each one, itself included.
        most: tokens of a part.

    """
    parts, first, tokens = [], 0, 0
    while first < len(ends):
        following = max(int(np.searchsorted(ends, tokens + most, "right")), first + 1)
        parts.append(slice(first, following))
        first, tokens = following, int(ends[following - 1])
    return parts


class _RandomState:
    """The state of the random numbers, so that the same ones can be drawn again."""

    def __init__(self, device: torch.device) -> None:
        self._devices = [device] if device.type == "cuda" else []
        self._state = torch.get_rng_state(), [torch.cuda.get_rng_state(device) for device in self._devices]

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Draw the same numbers again; afterwards go on from where they were."""
        with torch.random.fork_rng(self._devices):
            torch.set_rng_state(self._state[0])
            for device, state in zip(self._devices, self._state[1], strict=True):
                torch.cuda.set_rng_state(state, device)
            yield
