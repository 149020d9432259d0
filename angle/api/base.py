"""The encoder of class AnglE: loaded when it is needed, moved between devices, cut to its first layers."""

from __future__ import annotations

import warnings
from typing import Any, Self

import torch

from angle.compat.arguments import Settings
from angle.config import BillmConfig, ModelConfig, PoolingConfig
from angle.config.keys import unflatten
from angle.distributed.process_group import best_device
from angle.modeling.encoder import Encoder


class AngleBase:
    """What class AnglE is besides training, evaluating and encoding."""

    def __init__(self, settings: Settings, device: str | torch.device | None) -> None:
        """Load the encoder that the settings describe.

        Args:
            settings: those of the groups model, pooling and billm, by dotted name.
            device: where to put it; None: a GPU if there is one.

        """
        self._settings = settings
        self._device = torch.device(device) if device is not None else best_device()
        self._encoder: Encoder | None = self._load()

    def _load(self) -> Encoder:
        groups = unflatten(self._settings)
        encoder = Encoder.load(
            ModelConfig(**groups["model"]),
            PoolingConfig(**groups["pooling"]),
            billm=BillmConfig(**groups["billm"]) if "billm" in groups else None,
            merge=False,  # save and push exactly what was trained
        )
        return encoder.to(self._device).eval()

    @property
    def encoder(self) -> Encoder:
        """The encoder; reloaded if it was released."""
        if self._encoder is None:
            self._encoder = self._load()
        return self._encoder

    @property
    def backbone(self) -> Any:
        """The transformers model."""
        return self.encoder.backbone

    @property
    def tokenizer(self) -> Any:
        """The transformers tokenizer."""
        return self.encoder.tokenizer.tokenizer

    @property
    def max_length(self) -> int:
        """Maximum tokens per text."""
        return self.encoder.tokenizer.max_length

    @property
    def pooling_strategy(self) -> str:
        """How hidden states become an embedding."""
        return self.encoder.pooling

    @property
    def is_llm(self) -> bool:
        """Whether the model is a decoder."""
        return self.encoder.is_llm

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._device

    def to(self, device: str | torch.device) -> Self:
        """Move the weights, and return self."""
        self._device = torch.device(device)
        self.encoder.to(self._device)
        return self

    def cuda(self) -> Self:
        """Move the weights to the GPU, and return self; without a GPU, warn and stay on the CPU."""
        if not torch.cuda.is_available():
            warnings.warn("There is no CUDA device here: the model stays on the CPU.", stacklevel=2)
            return self
        return self.to("cuda")

    def truncate_layer(self, layer_index: int) -> Self:
        """Keep only the first `layer_index` layers, and return self."""
        self.encoder.truncate(layers=layer_index)
        self._settings["model.layers"] = layer_index
        return self
