"""What is wrong with the files of a model: the small ones, before they are believed, and then its weights."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from angle.errors import ConfigError, first_line
from angle.modeling.locations import read_json_object
from angle.modeling.weight_files import weight_files

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: How architectures call the sizes that the weights have too, and the number of layers.
SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "embedding_size", "type_vocab_size", "d_model", "d_ff", "dim",
    "hidden_dim", "n_embd", "n_inner", "ffn_dim",
)  # fmt: skip
LAYER_COUNTS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer", "encoder_layers", "decoder_layers")
#: Up to this size, a number in config.json costs nothing, whatever the weights say.
HARMLESS_SIZE = 2**16
COMPLEX_DTYPES = ("C64",)
INTEGER_DTYPES = ("BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64")
#: Those that weights cannot have, as torch calls them.
TORCH_DTYPES = {
    "torch.bool": "BOOL", "torch.uint8": "U8", "torch.int8": "I8", "torch.int16": "I16", "torch.int32": "I32",
    "torch.int64": "I64", "torch.complex64": "C64",
}  # fmt: skip


@dataclass(frozen=True)
class TensorHeader:
    """What a safetensors file says of a tensor."""

    dtype: str
    shape: tuple[int, ...]


def check_files(name: str, revision: str | None = None) -> None:
    """Check what the small files of a model say, before anything of the size that they claim is allocated.

    Raises:
        ConfigError: config.json describes another model than the weights are of.

    """
    config = read_if_there(name, "config.json", revision)
    for modality in ("vision", "audio"):
        if config.get(f"{modality}_config"):
            raise ConfigError(
                f"model.name_or_path={name} has {modality} parts, which embeddings of texts have no use for: choose a "
                f"model of its family for texts only."
            )
    headers = read_headers(name, weight_files(name, revision))  # none of a model that is yet to be downloaded
    for text_config in (config, config.get("text_config")):
        if isinstance(text_config, dict):
            _check_sizes(name, text_config, headers)


def read_headers(name: str, files: Collection[Path]) -> dict[str, TensorHeader]:
    """Return what files of weights say of their tensors; those of other kinds are left out.

    Raises:
        ConfigError: a file is damaged.

    """
    from safetensors import SafetensorError, safe_open

    headers: dict[str, TensorHeader] = {}
    for file in files:
        if file.suffix == ".bin":
            headers |= _read_bin_headers(file)
        if file.suffix != ".safetensors":
            continue
        try:
            with safe_open(file, "pt") as content:
                for key in content.keys():  # noqa: SIM118  # it is no mapping
                    tensor = content.get_slice(key)
                    headers[key] = TensorHeader(tensor.get_dtype(), tuple(tensor.get_shape()))
        except (SafetensorError, OSError) as error:
            raise ConfigError(
                f"{file.name} of {name} is damaged: {first_line(error)}; copy or download the model again."
            ) from None
    return headers


def _read_bin_headers(file: Path) -> dict[str, TensorHeader]:
    """Return the same for a file that torch has written, without its tensors; nothing if it cannot be read so."""
    import torch

    try:
        weights = torch.load(file, map_location="meta", weights_only=True, mmap=True)
        return {
            key: TensorHeader(TORCH_DTYPES.get(str(weight.dtype), ""), tuple(weight.shape))
            for key, weight in weights.items()
        }
    except Exception:  # what is wrong with it is reported when it is loaded
        return {}


def _check_sizes(name: str, config: Mapping[str, Any], headers: Mapping[str, TensorHeader]) -> None:
    """Check that layers and sizes in the configuration are numbers that the weights can have."""
    largest = max((size for header in headers.values() for size in header.shape), default=None)
    limits = dict.fromkeys(SIZES, HARMLESS_SIZE if largest is None else max(largest, HARMLESS_SIZE))
    if largest is None:
        limits["vocab_size"] = 2**24
    limits |= dict.fromkeys(LAYER_COUNTS, max(len(headers), 2**10))
    rows = [header.shape[0] for key, header in headers.items() if "position_embeddings" in key and header.shape]
    if rows:
        limits["max_position_embeddings"] = max(*rows, HARMLESS_SIZE)
    for key, limit in limits.items():
        value = config.get(key)
        smallest = 0 if key == "type_vocab_size" else 1
        if isinstance(value, int) and not smallest <= value <= limit:
            raise ConfigError(
                f"config.json of {name} says {key}={value:,}, which no model with these weights can have: copy or "
                f"download the model again."
            )


def _check_dtypes(name: str, headers: Mapping[str, TensorHeader]) -> None:
    """Check that weights are real numbers: transformers would take integers for the numbers that they stand for."""
    for key, header in headers.items():
        if key.endswith((".weight", ".bias")) and header.dtype in (*INTEGER_DTYPES, *COMPLEX_DTYPES):
            kind = "complex numbers" if header.dtype in COMPLEX_DTYPES else "integers"
            raise ConfigError(
                f"The weights of {name} are {kind}, {key} ({header.dtype}) for one, but its config.json has no "
                f"quantization_config that says what they stand for: give the model in float32, bfloat16 or float16."
            )


def read_if_there(name: str, filename: str, revision: str | None) -> dict[str, Any]:
    """Return the content of a model's file; nothing if it has none, or the hub cannot be reached."""
    try:
        return read_json_object(name, filename, revision) or {}
    except OSError:
        return {}


def check_weights(
    name: str, revision: str | None, model: PreTrainedModel, loading_info: Mapping[str, Collection[Any]]
) -> None:
    """Check that every weight that an embedding depends on was loaded, and that all of them are numbers.

    Args:
        name: the model's folder or name on the hub.
        revision: its revision there.
        model: the model, loaded.
        loading_info: which of its weights were missing, unexpected or of another shape, as transformers returns it.

    Raises:
        ConfigError: one of this is not so.

    """
    missing = sorted(key for key in loading_info["missing_keys"] if "pooler" not in key and "position_ids" not in key)
    mismatched = sorted(key for key, *_ in loading_info["mismatched_keys"])
    if missing or mismatched:
        example = (missing or mismatched)[0]
        raise ConfigError(
            f"model.name_or_path={name} does not fit its config.json: {len(missing)} weights are missing "
            f"and {len(mismatched)} have another shape, {example} for one. Those would "
            f"start at random; give the right folder."
        )
    left_out = next(_left_out_layers(model, loading_info["unexpected_keys"]), None)
    if left_out is not None:
        raise ConfigError(
            f"model.name_or_path={name} does not fit its config.json, which leaves out layers that it has weights for, "
            f"{left_out} for one: correct num_hidden_layers there, and cut layers off by model.layers=..."
        )
    unused = next(_unused_parts(model, loading_info["unexpected_keys"]), None)
    if unused is not None:
        raise ConfigError(
            f"model.name_or_path={name} has weights inside its layers that {type(model).__name__} of transformers has "
            f"no use for, {unused} for one, so its embeddings would differ from those of the model: choose another."
        )
    if "quantization_config" not in read_if_there(name, "config.json", revision):
        _check_dtypes(name, read_headers(name, weight_files(name, revision)))
    matrices, zeros = 0, list[str]()
    for key, weight in model.named_parameters():
        if not weight.is_floating_point():
            continue
        weight = weight.detach()
        total = float(weight.sum())
        if not math.isfinite(total) and not weight.isfinite().all():
            raise ConfigError(
                f"The weights of {name} are damaged: {key} has values that are no finite numbers; copy or download the "
                f"model again."
            )
        matrices += weight.ndim > 1
        if weight.ndim > 1 and total == 0 and not weight.any():
            zeros.append(key)
    if len(zeros) > matrices / 2:  # as of a file whose download has only reserved its space
        raise ConfigError(
            f"The weights of {name} are damaged: {len(zeros)} of its {matrices} matrices, {zeros[0]} for one, are all "
            f"zeros; copy or download the model again."
        )


def _left_out_layers(model: PreTrainedModel, unexpected_keys: Collection[str]) -> Iterator[str]:
    """Yield the weights that were not loaded, and belong to a further layer of those that the model has."""

    def pattern(key: str) -> str:
        return re.sub(r"\.\d+\.", ".*.", key.removeprefix(f"{model.base_model_prefix}."))

    known = {pattern(key) for key, _ in model.named_parameters()}
    yield from (key for key in sorted(unexpected_keys) if pattern(key) in known)


def _unused_parts(model: PreTrainedModel, unexpected_keys: Collection[str]) -> Iterator[str]:
    """Yield the matrices that were not loaded although they belong to layers that the model has; heads have none."""

    def layer(key: str) -> str | None:
        match = re.match(r".*?\.\d+\.", key.removeprefix(f"{model.base_model_prefix}."))
        return match and match[0]

    layers = {layer(key) for key, _ in model.named_parameters()} - {None}
    yield from (key for key in sorted(unexpected_keys) if key.endswith(".weight") and layer(key) in layers)
