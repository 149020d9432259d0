"""Where models are: in a run folder, a model folder, a GGUF file or a repository on the hub, and their JSON files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from angle.config import RUN_FILE, SWEEP_FILE
from angle.config.values import is_name
from angle.errors import ConfigError, first_line
from angle.files import MANIFEST, changed_file, readable_folder
from angle.quiet import quiet_hub

#: The name of the built-in model.
TINY = "tiny"
ADAPTER_FILE = "adapter_config.json"
#: What a model folder says of how texts become embeddings: see `EmbeddingConfig`.
EMBEDDING_CONFIG_FILE = "angle_config.json"


def split_gguf(name_or_path: str) -> tuple[str, str | None]:
    """Return a model's folder or repository and, if the name ends in one, the GGUF file inside."""
    if not name_or_path.endswith(".gguf"):
        return name_or_path, None
    parent, _, file = name_or_path.rpartition("/")
    return parent or ".", file


def locate_model(name_or_path: str, setting: str = "model.name_or_path") -> str:
    """Return the model folder inside a run folder (its best model, else the final one), or the name unchanged.

    Raises:
        ConfigError: a run folder has no model, or a path does not exist.

    """
    path = Path(name_or_path)
    if (path / RUN_FILE).is_file():
        for folder in (readable_folder(path / "best"), readable_folder(path / "final")):
            if folder.is_dir():
                return str(folder)
        raise ConfigError(
            f"{setting}={name_or_path} is a run folder without a model yet: finish it with "
            f"python train.py train.resume={name_or_path}"
        )
    if (path / SWEEP_FILE).is_file():
        raise ConfigError(
            f"{setting}={name_or_path} is a sweep's folder: give that of one of its runs; the last lines of the sweep, "
            f"and its page (python -m angle.report {name_or_path}), name the best."
        )
    parent, gguf = split_gguf(name_or_path)
    in_local_folder = gguf is not None and Path(parent).is_dir()
    is_path = name_or_path.startswith((".", "/", "~")) or parent.count("/") > 1 or in_local_folder
    if is_path and not path.exists():
        raise ConfigError(
            f"{setting}={name_or_path} does not exist: give a folder with weights, a run folder, a "
            f".gguf file or a hub name."
        )
    return name_or_path


def check_unchanged(name_or_path: str, setting: str = "model.name_or_path") -> None:
    """Check that a model that a run saved is as it was saved, by its checksums; other models have none.

    Raises:
        ConfigError: one of its files is another one, or is missing.

    """
    folder = Path(name_or_path)
    if not (folder / MANIFEST).is_file() or (name := changed_file(folder)) is None:
        return
    if name == MANIFEST and not (folder / EMBEDDING_CONFIG_FILE).is_file():
        return  # another program's
    problem = "is not as it was saved" if (folder / name).exists() else "is missing"
    raise ConfigError(
        f"{setting}={name_or_path} is damaged ({name} {problem}): put the original back or, if you have changed it on "
        f"purpose, delete {folder / MANIFEST}."
    )


def adapter_base(name_or_path: str, revision: str | None = None) -> tuple[str, str | None] | None:
    """Return the model, and its revision, that an adapter was made for; None if the name is not that of an adapter.

    Raises:
        ConfigError: it is a hub name, but the hub cannot be reached and nothing of it is in the cache.

    """
    from huggingface_hub import try_to_load_from_cache

    try:
        adapter = read_json_object(name_or_path, ADAPTER_FILE, revision)
    except OSError:  # without its configuration in the cache, an adapter could not be loaded anyway
        if not isinstance(try_to_load_from_cache(name_or_path, "config.json", revision=revision), str):
            raise ConfigError(
                f"model.name_or_path={name_or_path} could not be loaded: there is no folder of that name here, and "
                f"the hub cannot be reached. Give a folder with config.json and model.safetensors, or go online."
            ) from None
        return None
    if adapter is None:
        return None
    base = adapter.get("base_model_name_or_path")
    if not isinstance(base, str) or not is_name(base):
        raise ConfigError(
            f"{ADAPTER_FILE} of {name_or_path} does not say which model the adapter was made for: give that as "
            f"model.name_or_path and the adapter as model.adapter={name_or_path}."
        )
    return base, adapter.get("revision")


def read_json(name_or_path: str, filename: str, revision: str | None = None) -> Any:
    """Return the parsed JSON file of a model folder or hub repository, None if it has no such file.

    Raises:
        OSError: the hub cannot be reached, so whether the file exists is unknown.
        ConfigError: the file is not valid JSON.

    """
    if name_or_path == TINY or name_or_path.endswith(".gguf"):
        return None
    path = find_file(name_or_path, filename, revision)
    if path is None:
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_parse_constant)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{filename} of {name_or_path} is not valid JSON: {first_line(error)}.") from None


def _parse_constant(name: str) -> float:
    """Return an infinity, as some configurations have it; NaN is no value of theirs."""
    if name == "NaN":
        raise ValueError("it has the value NaN")
    return float(name)


def find_file(name_or_path: str, filename: str, revision: str | None = None) -> Path | None:
    """Return where a file of a model folder or hub repository is, downloaded if need be; None if it has no such file.

    Raises:
        OSError: the hub cannot be reached, so whether the file exists is unknown.

    """
    folder = Path(name_or_path)
    path = folder / filename if folder.is_dir() else _hub_file(name_or_path, filename, revision)
    return path if path is not None and path.is_file() else None


def read_json_object(name_or_path: str, filename: str, revision: str | None = None) -> dict[str, Any] | None:
    """Return what `read_json` does for a file that must hold an object.

    Raises:
        OSError, ConfigError: as `read_json`; or the file holds something else.

    """
    content = read_json(name_or_path, filename, revision)
    if content is not None and not isinstance(content, dict):
        raise ConfigError(
            f"{filename} of {name_or_path} holds no JSON object, which it must: copy or download it again."
        )
    return content


@quiet_hub()
def _hub_file(repository: str, filename: str, revision: str | None) -> Path | None:
    """Return where a repository's file is in the cache, downloaded if need be; None if it has no such file."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repository, filename, revision=revision))
    except LocalEntryNotFoundError as error:
        cached = try_to_load_from_cache(repository, filename, revision=revision)
        if cached is not None and not isinstance(cached, str):
            return None  # the hub said earlier that there is none
        raise OSError(f"{repository} has no {filename} in the cache, and the hub cannot be reached") from error
    except (EntryNotFoundError, HfHubHTTPError, HFValidationError):
        return None  # a missing or private repository is reported when its weights are loaded
