"""What a run's folder says of the run: its settings (config.yaml) and its record (run.json), both with checksums."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from angle.config.build import config_text, load_config
from angle.config.scripts import TrainConfig
from angle.config.values import CONFIG_FILE, RUN_FILE
from angle.errors import ConfigError
from angle.files import checksum, write_durably

#: Keys in run.json: the checksum of all the rest of it, and that of config.yaml.
CHECKSUM, CONFIG_CHECKSUM = "checksum", "config_checksum"


def read_record(folder: Path) -> dict[str, Any]:
    """Return what run.json says, nothing if there is none.

    Raises:
        ConfigError: it is not as it was written.

    """
    path = folder / RUN_FILE
    if not path.is_file():
        return {}
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        written = record.pop(CHECKSUM, None)
        intact = written in (None, _digest(_text(record)))
    except (ValueError, AttributeError, TypeError):  # no JSON, or no object
        intact = False
    if not intact:
        raise ConfigError(
            f"{path} is not as it was written, so nothing in it can be trusted: put the original back, or start a new "
            f"run in another folder; the models of this one can be used as {folder}/best and {folder}/final."
        )
    return record


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write run.json: after a crash it holds the old record or this one."""
    text = _text(record)
    write_durably(folder / RUN_FILE, _text(json.loads(text) | {CHECKSUM: _digest(text)}))


def write_config(folder: Path, config: TrainConfig) -> str:
    """Write the settings that a run begins with, and return their checksum for its record."""
    path = folder / CONFIG_FILE
    write_durably(path, config_text(config))
    return checksum(path)


def read_config(folder: Path) -> TrainConfig:
    """Return the settings that a run began with.

    Raises:
        ConfigError: they are not as they were written.

    """
    path = folder / CONFIG_FILE
    written = read_record(folder).get(CONFIG_CHECKSUM)
    if written is not None and not (path.is_file() and checksum(path) == written):
        raise ConfigError(
            f"{path} is {'not as it was when the run began' if path.exists() else 'missing'}, and other settings would "
            f"make another run of it: put the original back, or start a new run with another train.output_dir."
        )
    return load_config(path)


def _text(record: dict[str, Any]) -> str:
    return json.dumps(record, indent=2, default=str) + "\n"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
