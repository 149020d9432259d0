"""Configurations as a command line composes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from conftest import REPO
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore

from angle.cli.replaced_sources import let_words_replace_sources
from angle.config import ConvertConfig, EmbedConfig, EvaluateConfig, MineConfig, TrainConfig
from angle.config.build import build_config

CONF = REPO / "conf"
SCHEMAS = {
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "convert": ConvertConfig,
    "mine": MineConfig,
    "embed": EmbedConfig,
}


def composed(*words: str, name: str = "train", conf: Path = CONF) -> Any:
    """Return what a command line makes, checked."""
    let_words_replace_sources()
    ConfigStore.instance().store(name=f"{name}_schema", node=SCHEMAS[name])
    with initialize_config_dir(str(conf), version_base="1.3"):
        return build_config(compose(name, list(words)), SCHEMAS[name])
