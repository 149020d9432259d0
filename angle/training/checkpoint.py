"""Everything training needs to resume as if it had never stopped."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from angle.config import ModelConfig
from angle.modeling.adapters import TRAINED
from angle.modeling.backbone import load_backbone
from angle.modeling.buffers import persistent_buffers
from angle.modeling.encoder import Encoder
from angle.modeling.token_embeddings import PartlyTrainedEmbedding
from angle.quiet import quiet_transformers
from angle.training.average import WeightAverage
from angle.training.sharding import gather_full, shard_like

if TYPE_CHECKING:
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer


@dataclass
class Progress:
    """How far a run has progressed; with a checkpoint's tensors, its whole state."""

    step: int = 0
    """Optimiser steps done."""
    texts: int = 0
    """Texts trained on, over all processes."""
    values_before: dict[str, float] = field(default_factory=dict)
    """What the validation metrics were before training, by name."""
    last_values: dict[str, float] = field(default_factory=dict)
    """What they were in the last evaluation."""
    best_score: float | None = None
    """Best value in training so far of the metric that chooses the best model; None before the first."""
    best_step: int | None = None
    """The step at which it was reached."""
    reference_score: float | None = None
    """The value that an evaluation must exceed, by train.min_gain, to be better for train.patience."""
    evaluations_without_gain: int = 0
    """Evaluations since it was exceeded."""
    pruned: bool = False
    """Whether a search has stopped the run, at its last evaluation."""
    seconds: float = 0.0
    """Time spent training, including before each resume."""
    overflows: int = 0
    """Optimiser steps that were left out because their gradient was too large for fp16."""
    rows_read: str | None = None
    """Of the last batch: a resumed run checks that a stream still has these rows."""
    averaged: int = 0
    """Steps whose weights are in the average; see `WeightAverage`."""
    unreported: dict[str, Any] = field(default_factory=dict)
    """Of the steps since the last report of metrics, what the next one takes; see `Meter`."""


@dataclass(frozen=True)
class CheckpointState:
    """The full tensors of a checkpoint, on the main process."""

    weights: dict[str, Tensor]
    """The trainable ones: all, or with LoRA only the adapters; and buffers, some of which forward passes change."""
    optimizer: dict[str, Any]
    average: dict[str, Tensor]
    """The average of weights, nothing if there is none."""
    rng_states: Sequence[dict[str, Tensor]]
    """The RNG state of every process."""


def collect_state(
    model: nn.Module, optimizer: AcceleratedOptimizer, average: WeightAverage, accelerator: Accelerator
) -> CheckpointState:
    """Return what `save_state` writes. Every process must call this."""
    from accelerate.utils import gather_object

    trained = {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}
    return CheckpointState(
        gather_full(trained | persistent_buffers(model), accelerator),
        gather_full(optimizer.state_dict(), accelerator),
        gather_full(average.tensors, accelerator),
        gather_object([rng_state()]),
    )


def save_state(folder: Path, state: CheckpointState, accelerator: Accelerator, progress: Progress) -> None:
    """Write weights, optimiser, loss scale, every process's RNG state and progress into an existing folder."""
    save_file(state.weights, folder / "model.safetensors")
    if state.average:
        save_file(state.average, folder / "average.safetensors")
    scaler = accelerator.scaler.state_dict() if accelerator.scaler else None
    with (folder / "optimizer.pt").open("wb") as file:  # a path of its own would hide why it cannot be written
        torch.save({"optimizer": state.optimizer, "scaler": scaler}, file)
    for rank, states in enumerate(state.rng_states):
        save_file(states, folder / f"random-{rank}.safetensors")
    (folder / "progress.json").write_text(json.dumps(dataclasses.asdict(progress)), encoding="utf-8")


def load_state(
    folder: Path, model: nn.Module, optimizer: AcceleratedOptimizer, average: WeightAverage, accelerator: Accelerator
) -> Progress:
    """Restore what `save_state` wrote, and return the progress."""
    weights = load_file(folder / "model.safetensors")
    assert weights.keys() >= {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    _load_trained(model, weights)
    saved = torch.load(folder / "optimizer.pt", weights_only=True, map_location="cpu")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, moments in saved["optimizer"]["state"].items():
        for name, value in moments.items():
            if value.ndim:  # everything but the step count
                moments[name] = shard_like(value, parameters[number])
    optimizer.load_state_dict(saved["optimizer"])
    if accelerator.scaler is not None and saved["scaler"] is not None:
        accelerator.scaler.load_state_dict(saved["scaler"])
    restore_rng_state(load_file(folder / f"random-{accelerator.process_index}.safetensors"))
    progress = Progress(**json.loads((folder / "progress.json").read_text(encoding="utf-8")))
    if progress.averaged:
        average.load(load_file(folder / "average.safetensors"), progress.averaged)
    return progress


@quiet_transformers()
def load_saved_model(folder: Path, encoder: Encoder, config: ModelConfig) -> None:
    """Replace what was trained of an encoder by that of a model that the same run saved. All processes call this.

    The saved weights are read on the CPU; on a GPU nothing is allocated but one weight at a time.

    Args:
        folder: the saved model.
        encoder: trained in full, in part, or by its adapters; perhaps sharded.
        config: how the run loads its model.

    """
    backbone = encoder.backbone
    if encoder.has_adapters:
        from peft.utils import load_peft_weights

        saved = load_peft_weights(str(folder), device="cpu")
        names = [name for name, parameter in backbone.named_parameters() if parameter.requires_grad]
        saved = {name: saved[name.replace(f".{TRAINED}", "")] for name in names}  # a file has just one adapter
    else:
        # By transformers, because the names in its files are not always those of the model's weights.
        saved = load_backbone(replace(config, revision=None), str(folder)).state_dict()
    for name, module in backbone.named_modules():
        if isinstance(module, PartlyTrainedEmbedding):
            saved[f"{name}.trainable_weight"] = saved[f"{name}.weight"][(module.trainable_index >= 0).cpu()]
    _load_trained(backbone, saved)


def _load_trained(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy full weights, which every process has, into the trainable parameters and the buffers of those names."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(shard_like(weights[name], parameter))
        for name, buffer in persistent_buffers(model).items():
            if name in weights:  # the folder of an adapter has none
                buffer.copy_(weights[name])


def rng_state() -> dict[str, Tensor]:
    """Return this process's torch RNG state, on CPU and GPU."""
    states = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def restore_rng_state(states: dict[str, Tensor]) -> None:
    """Restore this process's RNG state."""
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def seed_everything(seed: int, rank: int) -> None:
    """Seed Python, NumPy and torch: pass rank 0 for identical models everywhere, the rank for independent dropout."""
    random.seed(seed + rank)
    np.random.seed((seed + rank) % 2**32)
    torch.manual_seed(seed + rank)
