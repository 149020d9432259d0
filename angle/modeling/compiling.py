"""Compilation of a backbone's layers, in place, once for batches of every size.

Each layer's own forward is compiled, not the backbone: all layers share the compiled code, hooks and activation
checkpointing stay outside it, and the names in a state dict do not change.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from angle.errors import ConfigError, first_line
from angle.modeling.encoder import Encoder
from angle.modeling.layers import base_model, find_layers
from angle.modeling.probing import probe_ids


def compile_layers(encoder: Encoder) -> None:
    """Compile the encoder's layers, and run some texts forward and backward to see whether that works here.

    The run uses the active autocast, and leaves RNG state and gradients as they were.

    Raises:
        ConfigError: compilation does not work here.

    """
    try:
        layers = find_layers(encoder.backbone)[2]
    except ConfigError:
        raise ConfigError(
            f"train.compile=true cannot work with {type(base_model(encoder.backbone)).__name__}, which has no list of "
            f"layers: leave it out."
        ) from None
    for layer in layers:
        layer.forward = _compiled_forward(layer)
    try:
        _run_trial(encoder, layers)
    except Exception as error:  # whatever a compiler, or the one it calls, cannot do
        reason = getattr(error, "inner_exception", error)  # what a backend raised
        raise ConfigError(
            f"train.compile=true cannot work here ({type(reason).__name__}: {first_line(reason)}): leave it out."
        ) from error


def _compiled_forward(layer: Any) -> Callable[..., Any]:
    """Return a compiled function that does the same as a layer's forward."""
    layer_forward = type(layer).forward
    if not (getattr(layer, "gradient_checkpointing", False) and hasattr(layer_forward, "__wrapped__")):
        return torch.compile(layer.forward, dynamic=True)
    # Here transformers' forward runs another one inside activation checkpointing, where torch would not compile it.
    compiled = torch.compile(layer_forward.__wrapped__, dynamic=True)

    def forward(*args: Any, **kwargs: Any) -> Any:
        run = partial(compiled, layer, **kwargs)
        return layer._gradient_checkpointing_func(run, *args) if layer.training else run(*args)

    return forward


def _run_trial(encoder: Encoder, layers: nn.ModuleList) -> None:
    """Run some texts as training does."""
    lengths = np.array([6, 4, 4])
    ids = probe_ids(encoder.backbone, int(lengths.sum()))
    trained = [parameter for parameter in layers.parameters() if parameter.requires_grad]
    was_training, logging_level = encoder.training, logging.root.manager.disable
    encoder.train()
    logging.disable(logging.WARNING)  # torch logs a traceback of what is reported in one sentence here
    try:
        with torch.random.fork_rng([ids.device] if ids.device.type == "cuda" else []):
            embeddings = encoder(ids, lengths)
            if trained:
                torch.autograd.grad(embeddings.square().sum(), trained, allow_unused=True)
    finally:
        logging.disable(logging_level)
        encoder.train(was_training)
