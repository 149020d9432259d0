"""The order in which the peers draw rows. Runs in their environments too."""

from __future__ import annotations

from functools import wraps
from typing import Any

import torch


def keep_file_order() -> None:
    """Let this process train on rows in the order of the file, so that all systems have the same batches.

    The samplers of torch and of sentence-transformers, that without duplicates too, take their order from
    `torch.randperm`, and nothing else of a training does.
    """

    @wraps(torch.randperm)
    def in_order(count: int, *_: Any, dtype: torch.dtype = torch.int64, **__: Any) -> torch.Tensor:
        return torch.arange(count, dtype=dtype)

    torch.randperm = in_order
