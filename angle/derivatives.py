"""A guard for the backward passes that are written out here, none of which can be differentiated in turn."""

import torch


def refuse_second_derivative() -> None:
    """Raise RuntimeError in a backward whose gradient is to be differentiated in turn, for it would pass as constant.

    `torch.autograd.function.once_differentiable` lets that pass where the gradient that comes in is constant.
    """
    if torch.is_grad_enabled():
        raise RuntimeError("this can be differentiated once only, without create_graph=True")
