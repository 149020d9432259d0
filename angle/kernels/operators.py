"""Private operators of torch, called by this package alone; a version of torch that lacks one is detected first."""

from __future__ import annotations

from operator import attrgetter

import torch

#: Versions of torch with which the operators that this package calls were tested.
TESTED_TORCH_VERSIONS = ("2.11", "2.13")


def missing_operator(*names: str) -> str | None:
    """Return which of the operators, such as "mkldnn._linear_pointwise", this torch lacks, in words; None if none."""
    for name in names:
        try:
            attrgetter(name)(torch.ops)
        except AttributeError:
            return (
                f"torch {torch.__version__} has no operator {name} (torch {' and '.join(TESTED_TORCH_VERSIONS)} have)"
            )
    return None
