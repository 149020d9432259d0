"""Command lines of angle_emb, translated: for the tests of this folder."""

from __future__ import annotations

import json
import shlex
from functools import cache
from typing import Any

import pytest
from conftest import REPO

from angle import ConfigError, TrainConfig, build_config
from angle.compat.angle_emb_0_5 import ANGLE_EMB_0_5
from angle.compat.command_line import parse
from angle.compat.translation import Translation, translate
from angle.config.keys import flatten, unflatten

OPTIONS = ANGLE_EMB_0_5.by_name
REFERENCE = json.loads((REPO / "tests" / "fixtures" / "reference_options.json").read_text())
BASE = "--model_name_or_path m --train_name_or_path t.jsonl --save_dir out --seed 42"
VALID, CALLBACK = "--valid_name_or_path v.jsonl", "--valid_name_or_path_for_callback s.jsonl"
DUPLICATES = "--filter_duplicate keeps equal texts from being negatives; angle_emb drops their rows"


def clear_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """One process with a GPU, and none of the environment variables that matter."""
    monkeypatch.setattr("angle.training.precision.half_precision", lambda: "fp16")
    for name in ("BiLLM_START_INDEX", "WANDB_PROJECT", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)


def translation_of(words: str) -> Translation:
    """Return the translation of a command line of angle_emb."""
    return translate(parse(shlex.split(words), ANGLE_EMB_0_5))


def config_of(words: str) -> TrainConfig:
    """Return the configuration equivalent to a command line of angle_emb."""
    return build_config(unflatten(translation_of(words).settings), TrainConfig)


@cache
def cached_config_of(words: str) -> TrainConfig:
    """Return the same, built once, for a command line that does not depend on the environment."""
    return config_of(words)


def notes_of(words: str) -> list[str]:
    """Return the notes on a command line beyond those on BASE."""
    return [note for note in translation_of(f"{BASE} {words}").notes if note != DUPLICATES]


def error_of(words: str) -> str:
    """Return the error message for a command line that cannot work."""
    with pytest.raises(ConfigError) as caught:
        config_of(words)
    return str(caught.value)


def changes(config: TrainConfig, since: TrainConfig) -> dict[str, Any]:
    """Return the settings that differ."""
    before = flatten(since)
    return {name: value for name, value in flatten(config).items() if value != before[name]}
