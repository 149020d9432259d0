"""Which kernels a model gets where nobody says: measured once, then remembered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from angle.config import LoraConfig, ModelConfig, PoolingConfig
from angle.config.model import KERNEL_NAMES
from angle.kernels import lora
from angle.kernels.linear import CpuLinear, LinearShapes, gain_over_torch, linear_shapes
from angle.kernels.registry import KERNELS, Benchmark
from angle.modeling import kernel_choice
from angle.modeling.encoder import Encoder
from angle.modeling.kernel_choice import MARGIN, choose_kernels


class Clock:
    """Stands in for the measurement of `linear`, and counts how often it is made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, gain: float) -> None:
        self.gain, self.shapes = gain, list[LinearShapes]()
        kernels = [
            kernel if kernel.benchmark is None else replace(kernel, benchmark=Benchmark(linear_shapes, self))
            for kernel in KERNELS
        ]
        monkeypatch.setattr(kernel_choice, "KERNELS", kernels)

    def __call__(self, shapes: LinearShapes) -> float:
        self.shapes.append(shapes)
        return self.gain


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ANGLE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def model(width: int = 8) -> nn.Module:
    return nn.Sequential(nn.Linear(width, 3), nn.Linear(3, 3), nn.Linear(3, 3, bias=False), nn.LayerNorm(3))


@pytest.mark.parametrize(
    ("gain", "skipped"),
    [
        (0.926, {"linear": "slower here: 0.93"}),
        (1.02, {"linear": "no faster here: 1.02"}),
        (MARGIN, {}),
        (1.35, {}),
    ],
)
def test_a_kernel_that_is_not_clearly_faster_is_left_out(
    monkeypatch: pytest.MonkeyPatch, gain: float, skipped: dict[str, str]
) -> None:
    Clock(monkeypatch, gain)
    assert choose_kernels(model(), None) == skipped


def test_the_first_measurement_counts_from_then_on(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, 0.5)
    first = choose_kernels(model(), None)
    clock.gain = 2.0
    assert choose_kernels(model(), None) == first == {"linear": "slower here: 0.50"}
    assert clock.shapes == [((3, 8), (3, 3))]


def test_other_shapes_and_other_threads_are_measured_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, threads = Clock(monkeypatch, 0.5), torch.get_num_threads()
    choose_kernels(model(), None)
    choose_kernels(model(9), None)
    torch.set_num_threads(threads + 1)
    try:
        choose_kernels(model(), None)
    finally:
        torch.set_num_threads(threads)
    assert len(clock.shapes) == 3


def test_nothing_is_measured_for_those_that_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, 0.5)
    assert choose_kernels(model(), list(KERNEL_NAMES)) == {}
    assert choose_kernels(model(), ["linear"]).keys() == set(KERNEL_NAMES) - {"linear"}
    assert choose_kernels(model().double(), None) == {}  # it does not apply
    assert not clock.shapes


def test_a_cache_that_cannot_be_written_or_is_damaged_only_costs_time(
    monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    clock = Clock(monkeypatch, 0.5)
    cache.write_text("no folder")
    assert choose_kernels(model(), None) == choose_kernels(model(), None) != {}
    assert len(clock.shapes) == 2
    cache.unlink()
    choose_kernels(model(), None)
    (file,) = (cache / "kernels").iterdir()
    file.write_bytes(b"damaged")
    choose_kernels(model(), None)
    assert len(clock.shapes) == 4


def test_where_products_by_onednn_lose_nothing_multiplies_by_them(
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
    monkeypatch.setattr(lora, "multiply", None)
    encoder.encode(["a b"])


def test_the_measurement_draws_no_random_numbers_and_wants_no_gradients() -> None:
    state = torch.get_rng_state()
    with torch.no_grad():
        assert gain_over_torch(((24, 16), (16, 24))) > 0
    assert torch.equal(torch.get_rng_state(), state)
