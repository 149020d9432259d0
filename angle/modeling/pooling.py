"""Token states -> one embedding a text."""

from __future__ import annotations

import torch
from torch import Tensor


def pool(hidden: Tensor, mask: Tensor, strategy: str) -> Tensor:
    """Return the embeddings of padded token states, in float32 (float64 for float64 states).

    Only the mask says what is a token: padding on either side, and other texts of the batch, change nothing.

    Args:
        hidden: (N, L, D) token states.
        mask: (N, L), 1 for tokens; every text has at least one.
        strategy: cls (first token), last (last token), avg or mean, max, cls_avg and cls_max (the mean of the two),
            the number of a token counted from the first one, or all.

    Returns:
        (N, D); for `all` (N, L, D), with zeros where there is no token.

    Raises:
        ValueError: a text has fewer tokens than the number asked for.

    """
    if hidden.dtype != torch.float64:
        hidden = hidden.float()
    mask = mask.to(torch.bool)
    if strategy == "all":
        return hidden.masked_fill(~mask[:, :, None], 0.0)
    if strategy == "cls":
        return _at(hidden, mask.int().argmax(dim=1))
    if strategy == "last":
        positions = torch.arange(mask.shape[1], device=mask.device)
        return _at(hidden, torch.where(mask, positions, -1).amax(dim=1))
    if strategy in ("avg", "mean"):
        return hidden.masked_fill(~mask[:, :, None], 0.0).sum(dim=1) / mask.sum(dim=1, keepdim=True)
    if strategy == "max":
        return hidden.masked_fill(~mask[:, :, None], -torch.inf).amax(dim=1)
    if strategy in ("cls_avg", "cls_max"):
        return (pool(hidden, mask, "cls") + pool(hidden, mask, strategy.removeprefix("cls_"))) / 2
    return _token(hidden, mask, int(strategy))


def _token(hidden: Tensor, mask: Tensor, number: int) -> Tensor:
    """Return the state of each text's token `number`, counted among real tokens."""
    shortest = int(mask.sum(dim=1).min())
    if number >= shortest:
        raise ValueError(
            f"pooling.strategy={number} asks for token {number} (counted from 0), but a text has only "
            f"{shortest} tokens; choose a smaller number, or cls, avg or last."
        )
    return _at(hidden, (mask.cumsum(dim=1) == number + 1).int().argmax(dim=1))


def _at(hidden: Tensor, position: Tensor) -> Tensor:
    return hidden[torch.arange(len(hidden), device=hidden.device), position]
