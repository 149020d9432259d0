"""Private operators of torch, which only this package calls: what a version of torch lacks is found out beforehand."""

from __future__ import annotations

from operator import attrgetter

import torch

#: Versions of torch with which the operators that this package calls were seen to work.
SEEN_WITH = ("2.11", "2.13")


def missing_operator(*names: str) -> str | None:
    """Return which of the operators, such as "mkldnn._linear_pointwise", this torch lacks, in words; None if none."""
    for name in names:
        try:
            attrgetter(name)(torch.ops)
        except AttributeError:
            return f"torch {torch.__version__} has no operator {name} (torch {' and '.join(SEEN_WITH)} have)"
    return None
