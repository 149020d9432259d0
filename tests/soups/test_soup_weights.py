"""The weighted mean of files of weights, against a mean written down again, and what has none."""

from __future__ import annotations

import json
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from angle import ConfigError
from angle.soups.weights import check_equal_tensors, read_tensor_infos, rounded, write_mean

SHAPES = {"matrix": (7, 5), "vector": (6,), "scalar": (), "empty": (0, 3), "cube": (3, 2, 4)}


def tensors(seed: int, dtype: torch.dtype) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    made = {name: torch.randn(shape, generator=random).to(dtype) for name, shape in SHAPES.items()}
    return made | {"position_ids": torch.arange(9).expand(1, -1).contiguous(), "mask": torch.tensor([True, False])}


def model(folder: Path, weights: Mapping[str, Tensor], shards: int = 1) -> Path:
    """Write a model's weights in so many files."""
    folder.mkdir()
    if shards == 1:
        save_file(dict(weights), folder / "model.safetensors", {"format": "pt"})
        return folder
    index = {}
    for number in range(shards):
        names, file = list(weights)[number::shards], f"model-{number}.safetensors"
        save_file({name: weights[name] for name in names}, folder / file)
        index |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder


@pytest.mark.parametrize("chunk", [4, 2**24])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_the_mean_is_that_of_a_plain_sum_to_the_last_bit(
    tmp_path: Path, dtype: torch.dtype, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("angle.soups.weights.CHUNK", chunk)
    known = [tensors(seed, dtype) for seed in range(3)]
    folders = [model(tmp_path / str(number), each) for number, each in enumerate(known)]
    (tmp_path / "mean").mkdir()
    write_mean(folders, [2, 1, 0.5], tmp_path / "mean")
    mean = load_file(tmp_path / "mean" / "model.safetensors")
    assert mean.keys() == known[0].keys()
    for name in SHAPES:
        summed = torch.zeros(SHAPES[name], dtype=torch.float64)
        for each, share in zip(known, (2 / 3.5, 1 / 3.5, 0.5 / 3.5), strict=True):
            summed += each[name].double() * share
        assert mean[name].dtype == dtype
        assert mean[name].equal(summed.to(dtype)), name
    assert mean["position_ids"].equal(known[0]["position_ids"])
    assert mean["mask"].equal(known[0]["mask"])


def test_files_may_be_cut_differently(tmp_path: Path) -> None:
    known = [tensors(seed, torch.float32) for seed in range(2)]
    folders = [model(tmp_path / "a", known[0], shards=3), model(tmp_path / "b", known[1], shards=2)]
    (tmp_path / "mean").mkdir()
    write_mean(folders, [1, 1], tmp_path / "mean")
    assert sorted(path.name for path in (tmp_path / "mean").iterdir()) == [f"model-{n}.safetensors" for n in range(3)]
    files = (load_file(tmp_path / "mean" / f"model-{number}.safetensors") for number in range(3))
    mean = {name: tensor for file in files for name, tensor in file.items()}
    assert mean["matrix"].equal(((known[0]["matrix"].double() + known[1]["matrix"].double()) / 2).float())
    assert mean.keys() == known[0].keys()


@pytest.mark.parametrize(("dtype", "bits"), [(torch.bfloat16, 8), (torch.float16, 11)])
def test_values_are_rounded_once(dtype: torch.dtype, bits: int) -> None:
    """By way of float32, what is just above or below the middle of two values would first become that middle."""
    middle = 1 + 2.0**-bits
    values = torch.tensor([middle, middle + 2.0**-40, middle + 2.0 ** (1 - bits) - 2.0**-40], dtype=torch.float64)
    values = torch.cat([values, -values])
    step = Fraction(1, 2 ** (bits - 1))
    expected = []
    for value in values.tolist():
        below = Fraction(value) // step
        rest = Fraction(value) / step - below
        up = rest > Fraction(1, 2) or (rest == Fraction(1, 2) and below % 2 == 1)
        expected.append(float((below + up) * step))
    assert rounded(values, dtype).double().tolist() == expected
    assert values.to(dtype).double().tolist() != expected  # torch alone rounds twice


def test_equal_models_have_themselves_as_their_mean(tmp_path: Path) -> None:
    known = tensors(0, torch.bfloat16)
    folders = [model(tmp_path / str(number), known) for number in range(3)]
    (tmp_path / "mean").mkdir()
    write_mean(folders, [1, 1, 1], tmp_path / "mean")
    assert (tmp_path / "mean" / "model.safetensors").read_bytes() == (folders[0] / "model.safetensors").read_bytes()


def test_whole_numbers_must_be_equal(tmp_path: Path) -> None:
    first, other = tensors(0, torch.float32), tensors(1, torch.float32)
    other["position_ids"] = other["position_ids"] + 1
    folders = [model(tmp_path / "a", first), model(tmp_path / "b", other)]
    (tmp_path / "mean").mkdir()
    with pytest.raises(
        ConfigError, match=r"/a and .*/b differ in position_ids, which has no mean: 0 and 1 at position 0\."
    ):
        write_mean(folders, [1, 1], tmp_path / "mean")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"matrix": torch.zeros(7, 6)}, r"matrix \(F32 of shape \(7, 5\); F32 of shape \(7, 6\)\)"),
        ({"vector": torch.zeros(6).half()}, r"vector \(F32 of shape \(6,\); F16 of shape \(6,\)\)"),
        ({"more": torch.zeros(6)}, r"more \(missing; F32 of shape \(6,\)\)"),
        ({"scalar": None}, r"scalar \(F32 of shape \(\); missing\)"),
    ],
)
def test_models_of_other_tensors_have_no_mean(tmp_path: Path, change: dict[str, Tensor | None], said: str) -> None:
    first = tensors(0, torch.float32)
    other = {name: tensor for name, tensor in (first | change).items() if tensor is not None}
    infos = [read_tensor_infos(model(tmp_path / name, each)) for name, each in (("a", first), ("b", other))]
    with pytest.raises(ConfigError, match=f"a and b differ in the weight {said}"):
        check_equal_tensors(*infos, "a and b")


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(ConfigError, match=r"has no model\.safetensors"):
        read_tensor_infos(tmp_path)
