"""Settings as a preset: a file for conf/experiment/ that sets what differs from the defaults."""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import OmegaConf

from angle.config.keys import flatten, unflatten
from angle.config.scripts import TrainConfig

#: What is left out, because it is of one run, or of who runs it.
LEFT_OUT = ("hparams.", "hub.", "tracking.", "train.resume", "train.output_dir", "train.dry_run")


def preset_text(config: TrainConfig, comments: Sequence[str]) -> str:
    """Return a preset of the settings, below comments; they are what was requested, before anything was decided."""
    default = flatten(TrainConfig())
    changed = {
        key: value for key, value in flatten(config).items() if value != default[key] and not key.startswith(LEFT_OUT)
    }
    lines = ["# @package _global_", *(f"# {comment}" for comment in comments)]
    return "\n".join(lines) + "\n" + OmegaConf.to_yaml(OmegaConf.create(unflatten(changed)))
