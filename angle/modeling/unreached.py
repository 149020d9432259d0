"""Weights that some texts do not reach: of heads that transformers loads with a model, or of experts."""

from __future__ import annotations

from typing import Any

import torch

from angle.modeling.probing import call_options, probe_ids
from angle.modeling.trials import is_proved

#: Number of tokens of the text that is run: so few that they do not reach every expert.
NUM_TOKENS = 2


def has_unreached_weights(backbone: Any) -> bool:
    """Return whether some trainable weights have no gradient for a short text."""
    if is_proved(backbone):
        return False
    trainable = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    was_training = backbone.training
    backbone.eval()
    try:
        with torch.enable_grad():
            ids = probe_ids(backbone, NUM_TOKENS)[None]
            states = backbone(
                input_ids=ids, attention_mask=torch.ones_like(ids), **call_options(backbone)
            ).last_hidden_state
            gradients = torch.autograd.grad(states.float().norm(), trainable, allow_unused=True)
    finally:
        backbone.train(was_training)
    return any(gradient is None for gradient in gradients)
