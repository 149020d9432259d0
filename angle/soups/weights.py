"""The weighted mean of the weights in several folders, tensor by tensor, in memory that does not grow with the model.

A file of safetensors is the length of its header, a header of JSON that has every tensor's type, shape and place, and
the tensors' bytes. The mean has the header of the first folder's file, so that its bytes can be written as they come.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from angle.errors import ConfigError
from angle.modeling.weight_files import weight_files

#: Types that are averaged, as headers call them; tensors of others must be equal everywhere.
AVERAGED = ("F64", "F32", "BF16", "F16")
#: Numbers of a tensor that are averaged at a time: 128 MiB in float64.
CHUNK = 2**24


class TensorInfo(NamedTuple):
    """What the header of a file says of a tensor."""

    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        """Return both as a message has them."""
        return f"{self.dtype} of shape {self.shape}"


class SafetensorsHeader(NamedTuple):
    """The header of a file."""

    content: bytes
    """As it is in the file, with the length in front."""
    tensors: dict[str, TensorInfo]
    """In the order of their bytes."""


def read_header(path: Path) -> SafetensorsHeader:
    """Return the header of a file of safetensors."""
    with path.open("rb") as file:
        size = file.read(8)
        text = file.read(int.from_bytes(size, "little"))
    entries: dict[str, Any] = json.loads(text)
    entries.pop("__metadata__", None)
    in_order = sorted(entries.items(), key=lambda entry: entry[1]["data_offsets"][0])
    tensors = {name: TensorInfo(entry["dtype"], tuple(entry["shape"])) for name, entry in in_order}
    return SafetensorsHeader(size + text, tensors)


def safetensors_files(folder: Path) -> list[Path]:
    """Return the files that a model's weights are in.

    Raises:
        ConfigError: there are none, or they are of another kind.

    """
    files = weight_files(str(folder))
    if not files or any(file.suffix != ".safetensors" for file in files):
        raise ConfigError(
            f"{folder} has no model.safetensors, whose weights could be averaged: give runs that were trained here."
        )
    return files


def check_equal_tensors(first: Mapping[str, TensorInfo], other: Mapping[str, TensorInfo], names: str) -> None:
    """Check that two models have the same tensors, of the same types and shapes.

    Args:
        first: the tensors of one model.
        other: those of the other.
        names: both models, for the message.

    Raises:
        ConfigError: they differ.

    """
    for name in [*first, *(name for name in other if name not in first)]:
        if first.get(name) != other.get(name):
            raise ConfigError(
                f"{names} differ in the weight {name} ({first.get(name, 'missing')}; {other.get(name, 'missing')}): "
                f"only weights of the same names, types and shapes have a mean."
            )


def read_tensor_infos(folder: Path) -> dict[str, TensorInfo]:
    """Return what the files of a model say of its tensors."""
    return {name: info for file in safetensors_files(folder) for name, info in read_header(file).tensors.items()}


def write_mean(folders: Sequence[Path], weights: Sequence[float], target: Path) -> None:
    """Write the files of the weighted mean, named as those of the first folder, into a folder.

    A tensor θ becomes Σ w_i θ_i / Σ w_i, which is summed in float64 in the order of the folders and rounded once.

    Args:
        folders: models with the same tensors, see `check_equal_tensors`.
        weights: the weight w_i of each.
        target: the folder, which exists.

    Raises:
        ConfigError: tensors of whole numbers, such as position ids, are not equal everywhere.

    """
    shares = normalized(weights)
    with ExitStack() as stack:
        models: list[dict[str, Any]] = []
        for folder in folders:
            opened = [stack.enter_context(safe_open(file, "pt")) for file in safetensors_files(folder)]
            models.append({name: file for file in opened for name in file.keys()})  # noqa: SIM118
        for file in safetensors_files(folders[0]):
            header = read_header(file)
            with (target / file.name).open("wb") as output:
                output.write(header.content)
                for name, info in header.tensors.items():
                    for first in range(0, max(1, _rows(info)), _rows_at_once(info)):
                        parts = (_part(model[name], name, info, first) for model in models)
                        if info.dtype in AVERAGED:
                            output.write(_bytes(weighted_mean(parts, shares)))
                        else:
                            output.write(_bytes(equal_tensor(list(parts), name, folders)))


def normalized(weights: Sequence[float]) -> list[float]:
    """Return weights that sum to 1."""
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def weighted_mean(tensors: Any, shares: Sequence[float]) -> Tensor:
    """Return Σ w_i θ_i of tensors θ_i of one type, summed in float64 in their order, and rounded once to their type."""
    total: Tensor | None = None
    for tensor, share in zip(tensors, shares, strict=True):
        dtype, part = tensor.dtype, tensor.double() * share
        total = part if total is None else total.add_(part)
    assert total is not None
    return rounded(total, dtype)


def equal_tensor(tensors: Sequence[Tensor], name: str, folders: Sequence[Path]) -> Tensor:
    """Return what several models have of a tensor that has no mean.

    Raises:
        ConfigError: two of them differ.

    """
    first = tensors[0]
    for tensor, folder in zip(tensors, folders, strict=True):
        if not tensor.equal(first):
            at = int((tensor != first).flatten().nonzero()[0])
            values = " and ".join(str(each.flatten()[at].item()) for each in (first, tensor))
            raise ConfigError(
                f"{folders[0]} and {folder} differ in {name}, which has no mean: {values} at position {at}. Leave one "
                f"out."
            )
    return first


def rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return float64 values rounded once, to the nearest of a type, ties to even.

    torch converts to 16 bits by way of float32, and so rounds twice, the second time perhaps from a tie that is none.
    Rounded to odd on the way (Boldo and Melquiond, 2008), nothing becomes a tie that was none.
    """
    if dtype in (torch.float64, torch.float32):
        return values.to(dtype)
    bits = values.float().view(torch.int32)
    bits -= (bits.view(torch.float32).abs() > values.abs()).int()  # towards zero: the sign is a bit of its own
    return (bits | (bits.view(torch.float32) != values).int()).view(torch.float32).to(dtype)


def _rows(info: TensorInfo) -> int:
    return info.shape[0] if info.shape else 1


def _rows_at_once(info: TensorInfo) -> int:
    return max(1, CHUNK // max(1, math.prod(info.shape[1:])))


def _part(file: Any, name: str, info: TensorInfo, first: int) -> Tensor:
    """Return the rows of a tensor from `first` on that are averaged at a time."""
    if not info.shape:
        whole: Tensor = file.get_tensor(name)
        return whole
    part: Tensor = file.get_slice(name)[first : first + _rows_at_once(info)]
    return part


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
