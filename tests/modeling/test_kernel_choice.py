"""Which kernels a model gets where nobody says: measured once, then remembered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from angle.config import LoraConfig, ModelConfig, PoolingConfig
from angle.kernels import KERNEL_NAMES, lora
from angle.kernels.kernel import Benchmark, Shapes
from angle.kernels.linear import CpuLinear, gain_over_torch, linear_shapes
from angle.kernels.registry import KERNELS
from angle.modeling import kernel_choice
from angle.modeling.encoder import Encoder
from angle.modeling.kernel_choice import MIN_GAIN, kernels_to_skip


class Clock:
    """Stands in for the measurement of `linear`, and counts how often it is made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, gain: float) -> None:
        self.gain, self.shapes = gain, list[Shapes]()
        kernels = [
            kernel if kernel.benchmark is None else replace(kernel, benchmark=Benchmark(linear_shapes, self))
            for kernel in KERNELS
        ]
        monkeypatch.setattr(kernel_choice, "KERNELS", kernels)

    def __call__(self, shapes: Shapes) -> float:
        self.shapes.append(shapes)
        return self.gain


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ANGLE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def model(width: int = 8) -> nn.Module:
    return nn.Sequential(nn.Linear(width, 3), nn.Linear(3, 3), nn.Linear(3, 3, bias=False), nn.LayerNorm(3))


@pytest.mark.parametrize(
    ("gain", "reasons_to_skip"),
    [
        (0.926, {"linear": "slower here: 0.93"}),
        (1.02, {"linear": "no faster here: 1.02"}),
        (MIN_GAIN, {}),
        (1.35, {}),
    ],
)
def test_a_kernel_that_is_not_clearly_faster_is_left_out(
    monkeypatch: pytest.MonkeyPatch, gain: float, reasons_to_skip: dict[str, str]
) -> None:
    Clock(monkeypatch, gain)
    assert kernels_to_skip(model(), None) == reasons_to_skip


def test_the_first_measurement_is_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, 0.5)
    first = kernels_to_skip(model(), None)
    clock.gain = 2.0
    assert kernels_to_skip(model(), None) == first == {"linear": "slower here: 0.50"}
    assert clock.shapes == [((3, 8), (3, 3))]


def test_other_shapes_and_thread_counts_are_measured_separately(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, threads = Clock(monkeypatch, 0.5), torch.get_num_threads()
    kernels_to_skip(model(), None)
    kernels_to_skip(model(9), None)
    torch.set_num_threads(threads + 1)
    try:
        kernels_to_skip(model(), None)
    finally:
        torch.set_num_threads(threads)
    assert len(clock.shapes) == 3


def test_requested_kernels_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, 0.5)
    assert kernels_to_skip(model(), list(KERNEL_NAMES)) == {}
    assert kernels_to_skip(model(), ["linear"]).keys() == set(KERNEL_NAMES) - {"linear"}
    assert kernels_to_skip(model().double(), None) == {}  # it does not apply
    assert not clock.shapes


def test_an_unwritable_or_damaged_cache_is_no_error(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    clock = Clock(monkeypatch, 0.5)
    cache.write_text("no folder")
    assert kernels_to_skip(model(), None) == kernels_to_skip(model(), None) != {}
    assert len(clock.shapes) == 2
    cache.unlink()
    kernels_to_skip(model(), None)
    (file,) = (cache / "kernels").iterdir()
    file.write_bytes(b"damaged")
    kernels_to_skip(model(), None)
    assert len(clock.shapes) == 4


def test_onednn_is_used_where_it_is_not_slower(
    folder_of: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither layers nor adapters, nor are weights written in another layout for texts without a gradient."""
    Clock(monkeypatch, 0.5)
    settings = ModelConfig(folder_of("llama")), PoolingConfig("avg"), LoraConfig(enabled=True)
    encoder = Encoder.load(*settings)
    assert encoder.kernel_status()["linear"] == "slower here: 0.50"
    assert encoder.kernels is not None
    assert encoder.kernels.selected == tuple(name for name in KERNEL_NAMES if name != "linear")
    assert not any(isinstance(module, CpuLinear) for module in encoder.modules())
    monkeypatch.setattr(lora, "cpu_linear", None)
    encoder.encode(["a b"])


def test_the_measurement_changes_neither_rng_state_nor_gradients() -> None:
    state = torch.get_rng_state()
    with torch.no_grad():
        assert gain_over_torch(((24, 16), (16, 24))) > 0
    assert torch.equal(torch.get_rng_state(), state)
