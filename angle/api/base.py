"""The encoder of class AnglE: loaded when it is needed, moved between devices, cut to its first layers, saved."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Self

import torch

from angle.compat.arguments import Settings
from angle.config import BillmConfig, ModelConfig, PoolingConfig
from angle.config.keys import unflatten
from angle.distributed.process_group import best_device
from angle.errors import ConfigError
from angle.files import replace_folder
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

    def save_pretrained(self, output_dir: str, exist_ok: bool = True) -> None:
        """Write weights (or only the adapters), tokenizer and angle_config.json into a folder.

        Args:
            output_dir: a new or empty folder.
            exist_ok: whether the folder may exist already, if it is empty.

        Raises:
            ConfigError: the folder holds files, or exists although `exist_ok` is false.

        """
        folder = Path(output_dir)
        if folder.exists() and (not exist_ok or folder.is_file() or any(folder.iterdir())):
            raise ConfigError(f"output_dir={folder} is there already, so nothing is written: give a new folder.")
        replace_folder(folder, self.encoder.save)

    def push_to_hub(self, hub_model_id: str, private: bool = True, exist_ok: bool = False) -> str:
        """Push the model and its card to the hub in one commit, and return its URL.

        Args:
            hub_model_id: user/name; created if it does not exist.
            private: whether a new repository is private.
            exist_ok: whether all files of a repository that already holds others may be replaced.

        Raises:
            ConfigError: the name is invalid, there is no token, or the repository is taken.
            HubError: the hub did not accept the push.

        """
        from angle.api.hub import push_encoder

        loaded_from = str(self._settings["model.name_or_path"])
        return push_encoder(self.encoder, loaded_from, hub_model_id, private=private, exist_ok=exist_ok)
