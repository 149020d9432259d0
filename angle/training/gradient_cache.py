"""The gradient of one evaluation of the objective: a batch through encoder and teacher, over all processes.

The loss needs the embeddings of all texts at once; the encoder does not. This is the gradient cache of Gao, Zhang, Han
and Callan ("Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", 2021), in their steps:

1. Graph-less forward: encode each micro-batch without a graph, and remember the state of its dropout.
2. Gradient cache: compute the loss on all embeddings, and its gradient with respect to them.
3. Micro-batch gradient accumulation: encode each micro-batch again, with its graph and the same dropout, and
   backpropagate its slice of the cached gradient to the weights.

Memory is that of one micro-batch, and the result does not depend on how many there are. The last micro-batch keeps its
graph from the start and is not encoded again, so a batch that fits in one micro-batch runs once.
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
from angle.objective.combined import LossOutput
from angle.objective.distillation import StudentTeacherStates
from angle.objective.objective import Objective
from angle.structures import Batch, Lengths, to_device
from angle.training.teacher import Teacher

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class GradientCache:
    """Computes the gradients of batches that may be larger than what the encoder can run at once."""

    model: Any
    """The `TrainableEncoder`, as prepared for several processes."""
    objective: Objective
    teacher: Teacher | None
    accelerator: Accelerator
    """Determines the device, the precision and the number of processes."""
    token_budget: int | None = None
    """Maximum number of tokens of a micro-batch; None to run the whole batch as one."""

    def forward_backward(self, batch: Batch, loss_weight: float = 1.0, *, sync_gradients: bool = True) -> LossOutput:
        """Add `loss_weight` times the gradient of the global batch's loss to the weights' gradients.

        Args:
            batch: the global batch, with this process's texts.
            loss_weight: weight of this batch in the optimiser step.
            sync_gradients: whether to average the gradients over the processes, once, at the end; set for the last
                batch of an optimiser step.

        Returns:
            The loss, detached, before `loss_weight`.

        """
        *cached, last = micro_batches(batch.max_lengths, self.token_budget)
        embeddings, rng_states = self._graphless_forward(batch, cached)
        with self._gradient_sync(sync_gradients and not cached):
            output = self._forward(batch, last)
            embeddings.append(output[0].detach())
            loss, gradient = self._loss_and_gradient(embeddings, batch, loss_weight)
            distillation = self._backward(batch, last, output, gradient, loss_weight)
        for micro_batch, rng_state in zip(cached, rng_states, strict=True):
            with self._gradient_sync(sync_gradients and micro_batch is cached[-1]):
                with rng_state.restored():
                    output = self._forward(batch, micro_batch)
                distillation = distillation + self._backward(batch, micro_batch, output, gradient, loss_weight)
        if self.teacher is None:
            return loss
        distillation = all_reduce_sum(distillation, self.accelerator.num_processes)
        total = loss.total + self.objective.teacher.weight * distillation
        return LossOutput(total, loss.terms | {"alignment": distillation})

    def _forward(self, batch: Batch, micro_batch: slice) -> tuple[Tensor, Tensor | None]:
        """Return the embeddings of a micro-batch, and its states to align with the teacher's."""
        output: tuple[Tensor, Tensor | None] = self.model(*batch.micro_batch(micro_batch, self.accelerator.device))
        return output

    def _graphless_forward(self, batch: Batch, cached: list[slice]) -> tuple[list[Tensor], list[_RngState]]:
        """Return the embeddings of the micro-batches that are encoded again later, and the RNG states for that."""
        embeddings, rng_states = [], []
        tokens = int(batch.max_lengths[: cached[-1].stop].sum()) if cached else 0
        with torch.no_grad(), self.accelerator.autocast(), prepacked_weights(self.model, tokens):
            for micro_batch in cached:
                rng_states.append(_RngState(self.accelerator.device))
                embeddings.append(self._forward(batch, micro_batch)[0])
        return embeddings, rng_states

    def _loss_and_gradient(
        self, embeddings: list[Tensor], batch: Batch, loss_weight: float
    ) -> tuple[LossOutput, Tensor]:
        """Return the global batch's loss, without distillation, and the gradient cache of this process's texts.

        Args:
            embeddings: of this process's micro-batches; emptied, as their memory adds to that of the loss.
            batch: the global batch.
            loss_weight: factor of the gradient.

        """
        processes = self.accelerator.num_processes
        global_embeddings = all_gather(torch.cat(embeddings), processes).requires_grad_()
        embeddings.clear()
        loss = self.objective(global_embeddings, batch.structure.to(self.accelerator.device))
        (global_gradient,) = torch.autograd.grad(loss.total, global_embeddings)
        # Every process computes the global batch's loss, but backpropagates only the gradient of its own texts.
        # DDP's all-reduce averages the weights' gradients over processes, whereas their sum is needed.
        gradient = global_gradient.chunk(processes)[self.accelerator.process_index]
        return LossOutput(loss.total.detach(), loss.terms), gradient * (loss_weight * processes)

    def _gradient_sync(self, enabled: bool) -> Any:
        """Suppress the all-reduce of gradients unless enabled: only the last backward pass of a step needs it."""
        return nullcontext() if enabled else self.accelerator.no_sync(self.model)

    def _backward(
        self,
        batch: Batch,
        micro_batch: slice,
        output: tuple[Tensor, Tensor | None],
        gradient: Tensor,
        loss_weight: float,
    ) -> Tensor:
        """Backpropagate a micro-batch's slice of the gradient cache; return its part of the distillation loss."""
        embeddings, states = output
        # The gradient of this scalar with respect to the embeddings is the cached one. As it is a scalar, loss scaling
        # (fp16) applies to it.
        surrogate, distillation = (embeddings * gradient[micro_batch]).sum(), gradient.new_zeros(())
        if self.teacher is not None:
            assert states is not None
            ids, lengths = batch.micro_batch(micro_batch, self.accelerator.device)
            with self.accelerator.autocast():
                targets = self.teacher(ids, lengths, batch.text_ids[micro_batch])
            weights = batch.weights(micro_batch, of_tokens=self.teacher.distillation_level == "tokens")
            distillation = self.objective.distillation(
                StudentTeacherStates(states, targets, to_device(weights, states.device))
            )
            factor = self.objective.teacher.weight * loss_weight * self.accelerator.num_processes
            surrogate = surrogate + factor * distillation
        self.accelerator.backward(surrogate)
        return distillation.detach()


def micro_batches(max_lengths: Lengths, token_budget: int | None) -> list[slice]:
    """Split texts into consecutive micro-batches within a token budget, as few and as even as possible.

    The fewer tokens the largest one has, the less memory a step takes; the more the last one has, the less is encoded
    again. A text longer than the budget is a micro-batch of its own.

    Args:
        max_lengths: (M,) maximum number of tokens of each text.
        token_budget: maximum number of tokens of a micro-batch; None for a single one.

    """
    if token_budget is None:
        return [slice(0, len(max_lengths))]
    cumulative = max_lengths.cumsum()
    fewest = len(_split(cumulative, token_budget))
    lowest = min(int(cumulative[-1]) // fewest, token_budget)
    budgets = range(lowest, token_budget)
    smallest = bisect_left(budgets, True, key=lambda budget: len(_split(cumulative, budget)) <= fewest)
    return _split(cumulative, lowest + smallest)


def _split(cumulative: Lengths, token_budget: int) -> list[slice]:
    """Return micro-batches that each take as many texts as fit into the budget, but at least one.

    Args:
        cumulative: (M,) number of tokens up to and including each text.
        token_budget: maximum number of tokens of a micro-batch.

    """
    slices, start, tokens = [], 0, 0
    while start < len(cumulative):
        stop = max(int(np.searchsorted(cumulative, tokens + token_budget, "right")), start + 1)
        slices.append(slice(start, stop))
        start, tokens = stop, int(cumulative[stop - 1])
    return slices


class _RngState:
    """The state of the random number generators, so that dropout can be drawn again."""

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
