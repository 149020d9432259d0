"""What a model says about itself: where it is, which adapter it carries, how it pools, how its texts are written."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from angle.config import RUN_FILE, START_INDEX_VARIABLE
from angle.errors import ConfigError
from angle.files import readable_folder
from angle.modeling.tokenizer import CONTRACT_FILE

TINY = "tiny"
ADAPTER_FILE = "adapter_config.json"
#: Pooling modes of sentence-transformers, keyed by our names.
SENTENCE_TRANSFORMERS_POOLING = {"cls": "cls", "avg": "mean", "max": "max", "last": "lasttoken"}


@dataclasses.dataclass(frozen=True)
class SelfDescription:
    """What a model folder or repository says about how to use it; None where it says nothing."""

    pooling: str | None = None
    max_length: int | None = None
    prompt: str | None = None
    padding_side: str | None = None
    bidirectional_from: int | None = None
    load_kbit: int | None = None
    special_tokens: tuple[tuple[str, ...], tuple[str, ...]] | None = None
    layers: int | None = None
    dimensions: int | None = None
    problem: str | None = None
    """Why its pooling is unknown, although it should be known; harmless if the settings give one."""


def split_gguf(name_or_path: str) -> tuple[str, str | None]:
    """Return a model's folder or repository and, if the name ends in one, the GGUF file inside."""
    if not name_or_path.endswith(".gguf"):
        return name_or_path, None
    place, _, file = name_or_path.rpartition("/")
    return place or ".", file


def locate(name_or_path: str, setting: str = "model.name_or_path") -> str:
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
    place, file = split_gguf(name_or_path)
    is_here = file is not None and Path(place).is_dir()
    looks_like_path = name_or_path.startswith((".", "/", "~")) or place.count("/") > 1 or is_here
    if looks_like_path and not path.exists():
        raise ConfigError(
            f"{setting}={name_or_path} does not exist: give a folder with weights, a run folder, a "
            f".gguf file or a hub name."
        )
    return name_or_path


def adapter_base(name_or_path: str, revision: str | None = None) -> tuple[str, str | None] | None:
    """Return the model, and its revision, that the adapter at this place was made for; None if it is not an adapter.

    Raises:
        ConfigError: it is a hub name, but the hub cannot be reached and nothing of it is in the cache.

    """
    from huggingface_hub import try_to_load_from_cache

    try:
        adapter = read_json(name_or_path, ADAPTER_FILE, revision)
    except OSError:  # without its configuration in the cache, an adapter could not be loaded anyway
        if not isinstance(try_to_load_from_cache(name_or_path, "config.json", revision=revision), str):
            raise ConfigError(
                f"model.name_or_path={name_or_path} could not be loaded: there is no folder of that name here, and "
                f"the hub cannot be reached. Give a folder with config.json and model.safetensors, or go online."
            ) from None
        return None
    return None if adapter is None else (str(adapter["base_model_name_or_path"]), adapter.get("revision"))


def read_json(name_or_path: str, filename: str, revision: str | None = None) -> Any:
    """Return the parsed JSON file of a model folder or hub repository, None if it has no such file.

    Raises:
        OSError: the hub cannot be reached, so whether the file exists is unknown.

    """
    if name_or_path == TINY or name_or_path.endswith(".gguf"):
        return None
    folder = Path(name_or_path)
    if folder.is_dir():
        path: Path | None = folder / filename
    else:
        path = _hub_file(name_or_path, filename, revision)
    return json.loads(path.read_text(encoding="utf-8")) if path is not None and path.is_file() else None


def _hub_file(name: str, filename: str, revision: str | None) -> Path | None:
    """Return where a repository's file is in the cache, downloaded if need be; None if it has no such file."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(name, filename, revision=revision))
    except LocalEntryNotFoundError as error:
        known = try_to_load_from_cache(name, filename, revision=revision)
        if known is not None and not isinstance(known, str):
            return None  # the hub said so when it was asked before
        raise OSError(f"{name} has no {filename} in the cache, and the hub cannot be reached") from error
    except (EntryNotFoundError, HfHubHTTPError, HFValidationError):
        return None  # a missing or private repository is reported when its weights are loaded


def describe(name_or_path: str, revision: str | None = None) -> SelfDescription:
    """Return what a model says about itself: in our contract, or as a sentence-transformers folder.

    Raises:
        ConfigError: this version cannot follow the description.

    """
    if name_or_path == TINY:
        return SelfDescription(pooling="avg")
    try:
        return _describe(name_or_path, revision)
    except OSError:
        return SelfDescription(
            problem=f"How {name_or_path} pools could not be asked: the hub cannot be reached, and its description is "
            f"not in the cache. Go online once, or type pooling=avg, pooling=cls or pooling=last."
        )


def _describe(name_or_path: str, revision: str | None) -> SelfDescription:
    contract = read_json(name_or_path, CONTRACT_FILE, revision)
    if contract is not None:
        start = contract.get("bidirectional_from")
        if contract.get("apply_billm"):  # from the reference, which keeps the start index only in the environment
            start = int(os.environ.get(START_INDEX_VARIABLE, "0"))
        pooling = contract.get("pooling", contract.get("pooling_strategy"))  # the second is the reference's name
        return SelfDescription(
            pooling=None if pooling is None else str(pooling),
            max_length=contract.get("max_length"),
            prompt=contract.get("prompt"),
            padding_side=contract.get("padding_side"),
            bidirectional_from=None if start is None or start < 0 else int(start),
            load_kbit=contract.get("load_kbit"),
            special_tokens=_pair(contract.get("special_tokens")),
            layers=contract.get("layers"),
            dimensions=contract.get("dimensions"),
        )
    modules = read_json(name_or_path, "modules.json", revision)
    if modules is None:
        return SelfDescription()
    return _describe_sentence_transformers(name_or_path, modules, revision)


def _pair(special_tokens: list[list[str]] | None) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    if special_tokens is None:
        return None
    before, after = special_tokens
    return tuple(before), tuple(after)


def _describe_sentence_transformers(name: str, modules: list[dict[str, Any]], revision: str | None) -> SelfDescription:
    settings = read_json(name, "sentence_bert_config.json", revision) or {}
    said = read_json(name, "config_sentence_transformers.json", revision) or {}
    prefix = (said.get("prompts") or {}).get(said.get("default_prompt_name"))
    prompt = prefix.replace("{", "{{").replace("}", "}}") + "{text}" if prefix else None
    pooling = problem = None
    for module in modules:
        kind = str(module["type"]).rsplit(".", 1)[-1]
        if kind == "Pooling":
            pools = read_json(name, f"{module['path']}/config.json", revision) or {}
            modes = [
                key.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token")
                for key, value in pools.items()
                if key.startswith("pooling_mode_") and value is True
            ]
            modes = modes or [str(pools.get("pooling_mode"))]
            ours = {theirs: our for our, theirs in SENTENCE_TRANSFORMERS_POOLING.items()}
            if prompt is not None and pools.get("include_prompt") is False:
                problem = (
                    f"{name} leaves its prompt's tokens out of its pooling, which cannot be done here: type "
                    f"pooling.strategy=... to pool them too."
                )
            elif len(modes) != 1 or modes[0] not in ours:
                problem = (
                    f"{name} pools by {' + '.join(modes)}, which has no name here: type pooling.strategy=... to "
                    f"choose another."
                )
            else:
                pooling = ours[modes[0]]
        elif kind not in ("Transformer", "Normalize"):
            raise ConfigError(
                f"{name} has a {kind} module after its pooling, which this project does not run: its "
                f"embeddings would be other ones."
            )
    return SelfDescription(
        pooling=pooling,
        max_length=settings.get("max_seq_length"),
        prompt=prompt,
        dimensions=said.get("truncate_dim"),
        problem=problem,
    )
