"""What a run reports about itself: the banner on the console, and its environment in run.json."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from angle.config import OWN_DROPOUT, LossConfig, TrainConfig, TrainingConfig
from angle.data.training_data import InMemoryTrainingData
from angle.kernels.registry import describe_kernels
from angle.modeling.encoder import Encoder
from angle.modeling.packing import Layout
from angle.modeling.quantization import count_weights
from angle.modeling.token_embeddings import partly_trained_embedding
from angle.training.data import RunData
from angle.versions import installed_versions

if TYPE_CHECKING:
    from accelerate import Accelerator


def describe_environment(accelerator: Accelerator) -> dict[str, Any]:
    """Return the part of run.json that says how and where a run was started."""
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": _command(sys.argv),
        "versions": installed_versions(),
        "git_commit": _git_commit(),
        "hardware": {
            "platform": platform.platform(),
            "cpus": os.cpu_count(),
            "processes": accelerator.num_processes,
            "device": str(accelerator.device),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }


def _command(argv: list[str]) -> list[str]:
    """Return the command line; only the name for programs outside this project, as arguments may contain secrets."""
    is_project_script = bool(argv) and Path(argv[0]).name in (
        "train.py",
        "angle-trainer",
        "angle_trainer.py",
        "soup.py",
    )
    return [re.sub(r"hf_\w+", "hf_...", word) for word in (argv if is_project_script else argv[:1])]


def _git_commit() -> str | None:
    """Return the commit of the code, marked if the code has changed since."""
    try:
        result = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"],
            cwd=Path(__file__).parent,
            check=True,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip() or None


def describe_losses(config: TrainConfig) -> list[str]:
    """Return the sum that is minimised; one for each source whose batches are its own."""
    more = "" if config.loss.guide is None else f", without negatives that {config.loss.guide} finds nearer"
    if config.ese.enabled:
        more += f" + Espresso: every layer, and its first {config.ese.compression_size} dimensions"
    if config.teacher.enabled:
        more += f" + {config.teacher.weight:g} alignment with {config.teacher.name_or_path}"
    of_graded = f" for graded labels (loss=format_a is {LossConfig().for_format('A').summary('A')})"
    return [f"{loss.summary}{of_graded if loss.config.is_of_graded_labels else ''}{more}" for loss in config.losses]


def _describe_average(train: TrainingConfig) -> str:
    """Return what is averaged over, after a comma; nothing without an average."""
    window = train.average_window
    if window is None:
        return ""
    steps = f"{window:.0%} of them" if window < 1 else f"{window:,.0f}"
    return f", averaged over the last {steps}" if train.average == "last" else f", moving average over {steps}"


def banner(
    config: TrainConfig, encoder: Encoder, data: RunData, total_steps: int, accelerator: Accelerator
) -> list[tuple[str, str]]:
    """Return a few lines on what a run is about to do, each with its label."""
    trainable_weights = sum(p.numel() for p in encoder.parameters() if p.requires_grad)
    all_weights = sum(map(count_weights, encoder.parameters()))
    model, train = config.model, config.train
    embeddings, reason = partly_trained_embedding(encoder), ""
    if embeddings is not None:
        all_weights -= embeddings.trainable_weight.numel()  # a copy of rows that `embeddings.weight` has too
        unused, vocabulary = embeddings.num_embeddings - len(embeddings.trainable_weight), embeddings.num_embeddings
        reason = f" (no text has {unused:,} of the {vocabulary:,} tokens)"
    trained = "" if trainable_weights == all_weights else f", {trainable_weights:,} of them trained{reason}"
    batches = accelerator.num_processes * train.gradient_accumulation_steps
    rows = [train.batch_size * batches]
    if isinstance(data.train, InMemoryTrainingData):
        sizes = {spec.batch_size * batches for spec in data.train.batch_specs}
        rows = sorted({min(size, data.train.num_rows) for size in sizes})
    row_counts = " to ".join(f"{count:,}" for count in dict.fromkeys((rows[0], rows[-1])))
    max_tokens = train.max_tokens_per_micro_batch
    layout = str(encoder.layout)
    if encoder.packing_failed:
        layout += ", for packed ones failed the comparison on this device"
    elif encoder.layout in (Layout.EQUAL_LENGTHS, Layout.ALONE):
        layout += ", for padding changes their embeddings in this architecture"
    held_out = f", {len(data.valid):,} more held out" if config.data.valid_split and data.valid is not None else ""
    lines = [
        ("model", f"{model.name_or_path}: {all_weights:,} weights{trained}, {encoder.embedding_config}"),
        *(("data", f"{description}{held_out}") for description in data.train.descriptions),
        *(("loss", terms) for terms in describe_losses(config)),
        (
            "steps",
            f"{total_steps:,} of {row_counts} rows, learning rate {train.learning_rate:g}, "
            f"{f'times {train.layer_decay:g} for each layer below the last, ' if train.layer_decay < 1 else ''}"
            f"{train.scheduler}, "
            f"seed {train.seed}"
            f"{'' if train.dropout == OWN_DROPOUT else f', dropout {train.dropout}'}"
            f"{f', at most {max_tokens:,} tokens at once' if max_tokens else ''}"
            f"{_describe_average(train)}",
        ),
        (
            "device",
            f"{accelerator.device}, {accelerator.num_processes} "
            f"process{'es' if accelerator.num_processes > 1 else ''}"
            f"{', weights sharded' if accelerator.is_fsdp2 else ''}, "
            f"{'float32' if train.mixed_precision == 'no' else train.mixed_precision}, "
            f"texts {layout}{', compiled' if train.compile else ''}",
        ),
    ]
    lines.append(("kernels", describe_kernels(encoder.kernel_status())))
    if config.hub.push:
        visible_to = "you alone" if config.hub.private else "everybody"
        lines.append(("hub", f"{config.hub.model_id}, once training is over, for {visible_to}"))
    return lines
