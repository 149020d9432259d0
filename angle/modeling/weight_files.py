"""The files that a model's weights are in: which ones they are, and a fingerprint of their content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from angle.errors import ConfigError
from angle.modeling.locations import TINY, read_json, split_gguf

#: What transformers loads from a folder, the first that is there: a file, or the list of the files of a larger model.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
ADAPTER_WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin")
#: A fingerprint reads small files whole. Of larger ones, it reads as much in blocks at even distances, which takes
#: 30 ms whatever their size: training, quantising or merging changes nearly every block.
FINGERPRINT_BYTES, BLOCK_BYTES = 2**24, 2**12


def model_folder(name_or_path: str, revision: str | None = None) -> Path | None:
    """Return the folder that a model has been loaded from, in the cache if it is on the hub; None if there is none."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    folder, gguf_file = split_gguf(name_or_path)
    if Path(folder).is_dir():
        return Path(folder)
    try:
        cached = try_to_load_from_cache(folder, gguf_file or "config.json", revision=revision)
    except HFValidationError:
        return None
    return Path(cached).parent if isinstance(cached, str) else None


def weight_files(name_or_path: str, revision: str | None = None) -> list[Path]:
    """Return the files that a model's weights are loaded from; none for the built-in model.

    Raises:
        ConfigError: the list of files of a larger model cannot be read.

    """
    folder = None if name_or_path == TINY else model_folder(name_or_path, revision)
    if folder is None:
        return []
    gguf_file = split_gguf(name_or_path)[1]
    names = WEIGHT_FILES if gguf_file is None else (gguf_file,)
    found = next((folder / name for name in names if (folder / name).is_file()), None)
    if found is None or found.suffix != ".json":
        return [] if found is None else [found]
    index = read_json(str(folder), found.name)
    try:
        files = sorted({folder / file for file in index["weight_map"].values()})
    except (KeyError, TypeError, AttributeError):
        raise ConfigError(
            f"{found.name} of {name_or_path} is damaged: it has no weight_map of the files that the weights are in; "
            f"copy the folder again."
        ) from None
    return [file for file in files if file.is_file()]


def fingerprint(files: Iterable[Path]) -> str:
    """Return a hash of the content of files, whatever their names."""
    sizes = {file: file.stat().st_size for file in files}
    total, digest = sum(sizes.values()), hashlib.sha256()
    stride = max(BLOCK_BYTES, -(-total * BLOCK_BYTES // FINGERPRINT_BYTES))
    for file, size in sizes.items():
        digest.update(size.to_bytes(8, "little"))
        with file.open("rb") as content:
            for start in range(0, size, stride):
                content.seek(start)
                digest.update(content.read(BLOCK_BYTES))
    return digest.hexdigest()
