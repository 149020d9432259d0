"""A guard for the hand-written backward passes of this package, none of which can be differentiated again."""

import torch


def forbid_double_backward() -> None:
    """Raise RuntimeError if this backward pass is to be differentiated, since its gradient would pass as a constant.

    `torch.autograd.function.once_differentiable` does not catch this if the incoming gradient is constant.
    """
    if torch.is_grad_enabled():
        raise RuntimeError("this can be differentiated once only, without create_graph=True")
