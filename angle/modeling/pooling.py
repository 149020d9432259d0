"""Token states -> one embedding per text."""

from __future__ import annotations

import torch
from torch import Tensor

from angle.structures import Lengths, to_device


def pool(states: Tensor, lengths: Lengths, strategy: str) -> Tensor:
    """Return the embeddings (N, D) of N texts, in float32 (float64 for float64 states).

    Args:
        states: (T, D) states of the texts' tokens, one text after the other and without padding.
        lengths: (N,) tokens of each text, at least one.
        strategy: cls (first token), last (last token), avg or mean, max, cls_avg and cls_max (the mean of the two), or
            the number of a token, counted from 0.

    Raises:
        ValueError: a text has no token with the number asked for.

    """
    if states.dtype != torch.float64:
        states = states.float()
    if strategy in ("cls_avg", "cls_max"):
        return (pool(states, lengths, "cls") + pool(states, lengths, strategy.removeprefix("cls_"))) / 2
    if strategy in ("avg", "mean", "max"):
        how = "max" if strategy == "max" else "mean"
        # Sums in a fixed order, unlike index_add on a GPU, so that a run can be repeated bit for bit. CPUs and CUDA
        # have it; elsewhere, the states take a detour via the CPU.
        there = states if states.device.type in ("cpu", "cuda") else states.cpu()
        counts = to_device(lengths, there.device)
        return torch.segment_reduce(there, how, lengths=counts, unsafe=True).to(states.device)
    ends = lengths.cumsum()
    where = ends - 1 if strategy == "last" else ends - lengths + _number(strategy, lengths)
    return states[to_device(where, states.device)]


def _number(strategy: str, lengths: Lengths) -> int:
    """Return the number of the token that stands for a text."""
    number = 0 if strategy == "cls" else int(strategy)
    if number >= lengths.min():
        raise ValueError(
            f"pooling.strategy={number} asks for token {number} (counted from 0), but a text has only "
            f"{lengths.min()} tokens; choose a smaller number, or cls, avg or last."
        )
    return number
