"""The weighted sum of LoRA adapters of one base, as one adapter.

An adapter adds s B A to a layer's weights, with A (r, inputs), B (outputs, r) and the scaling s. The mean of several A
times the mean of several B has products of one adapter's A with another's B, which nobody has trained. So ranks are put
side by side: A = [A_1; A_2; ...] and B = [w_1 s_1 B_1, w_2 s_2 B_2, ...] give B A = Σ w_i s_i B_i A_i.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save_file
from torch import Tensor

from angle.errors import ConfigError, brief
from angle.modeling.locations import ADAPTER_FILE, read_json_object
from angle.modeling.weight_files import ADAPTER_WEIGHT_FILES
from angle.soups.weights import TensorInfo, equal_tensor, read_header, rounded

#: How the names of both factors' weights contain what they are.
DOWN, UP = (".lora_A.", ".lora_embedding_A"), (".lora_B.", ".lora_embedding_B")
#: Entries of an adapter's file with which its update is no sum of such products, or has a scaling by layer.
NO_SUM = (
    "use_dora", "lora_bias", "rank_pattern", "alpha_pattern", "target_parameters", "layer_replication",
    "modules_to_save", "trainable_token_indices", "alora_invocation_tokens", "use_qalora", "arrow_config",
)  # fmt: skip


def check_summable(folder: Path) -> None:
    """Check that an adapter is LoRA whose update of a layer is s B A.

    Raises:
        ConfigError: it is another kind of adapter.

    """
    config = _read_config(folder)
    unfit = {name: config[name] for name in NO_SUM if config.get(name)}
    if config.get("bias", "none") != "none":
        unfit["bias"] = config["bias"]
    if config.get("peft_type") != "LORA":
        unfit = {"peft_type": config.get("peft_type")}
    for name, value in unfit.items():
        raise ConfigError(
            f"{folder} is an adapter with {name}={brief(value)}, and a sum of such adapters is no adapter: merge each "
            f"run by convert.py, or train with plain LoRA (lora=r16)."
        )


def read_factor_infos(folder: Path) -> dict[str, TensorInfo]:
    """Return what an adapter's file says of its tensors, with a rank of 0, in which adapters may differ."""
    path = folder / ADAPTER_WEIGHT_FILES[0]
    if not path.is_file():
        raise ConfigError(f"{folder} has no {path.name}, whose weights could be summed: give runs trained here.")
    found = {}
    for name, (dtype, shape) in read_header(path).tensors.items():
        ranks = {0} if _is_any(DOWN, name) else {1} if _is_any(UP, name) else set()
        found[name] = TensorInfo(dtype, tuple(0 if at in ranks else size for at, size in enumerate(shape)))
    return found


def write_sum(folders: Sequence[Path], weights: Sequence[float], target: Path) -> None:
    """Write the adapter whose update of each layer is Σ w_i s_i B_i A_i, its file and its weights, into a folder.

    Args:
        folders: adapters of the same base, with the same layers, see `check_summable`.
        weights: the weight w_i of each.
        target: the folder, which exists.

    Raises:
        ConfigError: other tensors than those of the products differ.

    """
    configs = [_read_config(folder) for folder in folders]
    files = [load((folder / ADAPTER_WEIGHT_FILES[0]).read_bytes()) for folder in folders]
    factors = [weight * _scaling(config) for weight, config in zip(weights, configs, strict=True)]
    summed: dict[str, Tensor] = {}
    for name, first in files[0].items():
        tensors = [file[name] for file in files]
        if _is_any(DOWN, name):
            summed[name] = torch.cat(tensors)
        elif _is_any(UP, name):
            scaled = [tensor.double() * factor for tensor, factor in zip(tensors, factors, strict=True)]
            summed[name] = rounded(torch.cat(scaled, dim=1), first.dtype)
        else:
            summed[name] = equal_tensor(tensors, name, folders)
    rank = sum(int(config["r"]) for config in configs)
    changes = {"r": rank, "lora_alpha": rank, "use_rslora": False}  # a scaling of 1
    save_file(summed, target / ADAPTER_WEIGHT_FILES[0], {"format": "pt"})
    (target / ADAPTER_FILE).write_text(json.dumps(configs[0] | changes, indent=2) + "\n", encoding="utf-8")


def _scaling(config: dict[str, Any]) -> float:
    rank = int(config["r"])
    return float(config["lora_alpha"]) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _read_config(folder: Path) -> dict[str, Any]:
    config = read_json_object(str(folder), ADAPTER_FILE)
    assert config is not None
    return config


def _is_any(parts: Sequence[str], name: str) -> bool:
    return any(part in name for part in parts)
