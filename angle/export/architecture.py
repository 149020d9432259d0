"""What a saved model is made of, from its folder's config.json and the headers of its weights."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

#: The names that configurations have for the number of layers.
LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")

#: The type of stored positions, which are no weights.
POSITIONS = "I64"


@dataclass(frozen=True)
class Architecture:
    """A model's class and size; None for what is not known."""

    name: str
    layers: int | None
    hidden_size: int | None
    weights: int | None

    def __str__(self) -> str:
        """Return it in words."""
        parts = [
            self.name,
            self.layers and f"{self.layers} layers",
            self.hidden_size and f"hidden size {self.hidden_size:,}",
            self.weights and f"{self.weights:,} weights",
        ]
        return ", ".join(part for part in parts if part)


def read_architecture(folder: Path) -> Architecture | None:
    """Return what the model in a folder is made of, None if there is none."""
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    names = config.get("architectures") or [config.get("model_type")]
    if names[0] is None:
        return None
    layers = next((config[key] for key in LAYERS if isinstance(config.get(key), int)), None)
    return Architecture(str(names[0]), layers, config.get("hidden_size"), count_weights(folder))


def count_weights(folder: Path) -> int | None:
    """Return the number of weights in a folder's own files, None if they cannot be read."""
    total = 0
    try:
        for path in folder.glob("*.safetensors"):
            with safe_open(path, "np") as file:
                slices = map(file.get_slice, file.keys())
                total += sum(math.prod(each.get_shape()) for each in slices if each.get_dtype() != POSITIONS)
    except (OSError, SafetensorError):
        return None
    return total or None
