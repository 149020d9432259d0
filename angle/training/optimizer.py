"""The optimiser, with learning rates and weight decays by parameter."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from angle.config import TrainingConfig
from angle.errors import ConfigError
from angle.modeling.layers import base_model, find_layers
from angle.modeling.trainable import TrainableEncoder


def make_optimizer(trainable: TrainableEncoder, config: TrainingConfig) -> torch.optim.AdamW:
    """Return AdamW for the trained parameters, without a learning rate.

    Only matrices decay: biases and norms have no target to shrink to. Each group of parameters says by `lr_scale` how
    much of the run's learning rate it gets.

    Raises:
        ConfigError: the rate is to differ between layers, but the model has no list of them.

    """
    scales = _layer_scales(trainable.encoder.backbone, config.layer_decay) if config.layer_decay < 1 else {}
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for parameter in trainable.parameters():
        if parameter.requires_grad:
            groups.setdefault((parameter.ndim < 2, scales.get(parameter, 1.0)), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "weight_decay": 0.0 if is_vector else config.weight_decay, "lr_scale": scale}
            for (is_vector, scale), parameters in sorted(groups.items())
        ],
        lr=0.0,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        fused=True,
    )


def set_learning_rate(optimizer: Any, learning_rate: float) -> None:
    """Set the learning rate of the next step."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["lr_scale"]


def _layer_scales(backbone: Any, decay: float) -> dict[nn.Parameter, float]:
    """Return the share of the learning rate that a model's parameters get (Clark et al. 2020, ELECTRA).

    Of n layers, the last gets all of it and each other `decay` times that of the one above it; what a model has before
    its layers, its embeddings, gets decay^n, and what it has after them, such as a last norm, all of it.
    """
    model = base_model(backbone)
    try:
        layers = find_layers(backbone)[2]
    except ConfigError:
        raise ConfigError(
            f"train.layer_decay={decay:g} cannot work with {type(model).__name__}, which has no list of layers: leave "
            f"it out."
        ) from None
    depths = {parameter: depth for depth, layer in enumerate(layers, 1) for parameter in layer.parameters()}
    scales: dict[nn.Parameter, float] = {}
    depth = 0
    for parameter in model.parameters():
        depth = depths.get(parameter, len(layers) if depth else 0)
        scales[parameter] = decay ** (len(layers) - depth)
    return scales
