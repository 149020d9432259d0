"""Probing: running a model on a few tokens, to see what it does."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle, islice
from typing import Any

import torch
from torch import Tensor

from angle.modeling.layers import base_model
from angle.modeling.token_embeddings import num_token_embeddings

#: Largest relative change of a token's state that rounding explains, in float32 and below: there, half of what bfloat16
#: loses in a number, which may be most of a narrow state.
ROUNDING, LOW_PRECISION_ROUNDING = 1e-5, 2.0**-8


@contextmanager
def evaluating(backbone: Any) -> Iterator[None]:
    """Run without dropout and gradients, and restore the mode."""
    was_training = backbone.training
    backbone.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        backbone.train(was_training)


def call_options(backbone: Any) -> dict[str, bool]:
    """Return the arguments of a model's calls that keep it from collecting what only writing text needs."""
    return {"use_cache": False} if "use_cache" in inspect.signature(base_model(backbone).forward).parameters else {}


def device_of(backbone: Any) -> torch.device:
    device: torch.device = next(backbone.parameters()).device
    return device


def _special_tokens(backbone: Any) -> list[int]:
    """Return the tokens that pad, begin and end texts, as far as the configuration says."""
    config = base_model(backbone).config
    tokens = [getattr(config, f"{kind}_token_id", None) for kind in ("pad", "bos", "eos", "cls", "sep", "unk")]
    return [token for token in tokens if isinstance(token, int) and 0 <= token < _vocabulary_size(backbone)]


def _vocabulary_size(backbone: Any) -> int:
    return num_token_embeddings(backbone) or int(getattr(base_model(backbone).config, "vocab_size", 0)) or 256


def plain_tokens(backbone: Any, count: int) -> list[int]:
    """Return tokens that are none of these; in falling order, because rising numbers are taken for positions.

    They are spread over the vocabulary: neighbours in it may be tokens that no text has, with the same embedding.
    """
    special = {*_special_tokens(backbone)}
    plain = [token for token in range(_vocabulary_size(backbone)) if token not in special] or [0]
    if len(plain) > count:
        plain = [plain[len(plain) * number // (count + 1)] for number in range(1, count + 1)]
    return list(islice(cycle(reversed(plain)), count))


def probe_ids(backbone: Any, count: int) -> Tensor:
    """Return (count,) tokens of every kind, those that pad, begin and end texts among them."""
    ids = torch.arange(1, count + 1).mul(7).remainder(_vocabulary_size(backbone))
    for position, token in zip(range(1, count, 3), _special_tokens(backbone), strict=False):
        ids[position] = token
    return ids.to(device_of(backbone))


def differ(states: Tensor, others: Tensor) -> bool:
    """Return whether a token's states, of (..., L, D), differ by more than rounding.

    Where experts run the tokens that chose them, the number of these changes how their products are rounded.
    """
    limit = ROUNDING if states.dtype == torch.float32 else LOW_PRECISION_ROUNDING
    states, others = states.float(), others.float()
    changes = (states - others).norm(dim=-1) / others.norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
    return bool((changes > limit).any())
