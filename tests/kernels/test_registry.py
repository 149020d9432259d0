"""The registry: its names, what is installed in which model, and what is said about the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from packed_models import assert_close_to_scale, embed
from torch import nn

from angle.config import LoraConfig, ModelConfig, PoolingConfig
from angle.kernels import KERNEL_NAMES
from angle.kernels.attention.packed import PACKED, PACKED_IN_BLOCKS
from angle.kernels.dropout import CpuDropout
from angle.kernels.linear import CpuLinear
from angle.kernels.operators import TESTED_TORCH_VERSIONS, missing_operator
from angle.kernels.registry import INSTALLED, KERNELS, NOT_REQUESTED, describe_kernels, install_kernels
from angle.modeling.encoder import Encoder

ALL = list(KERNEL_NAMES)


def load(folder: str, kernels: list[str] | None, lora: LoraConfig | None = None, **settings: Any) -> Encoder:
    torch.manual_seed(0)
    return Encoder.load(ModelConfig(folder, kernels=kernels, **settings), PoolingConfig("avg"), lora).eval()


def classes(encoder: Encoder) -> set[type]:
    return {type(module) for module in encoder.modules()}


def test_the_settings_know_every_kernel_by_its_name() -> None:
    assert tuple(kernel.name for kernel in KERNELS) == KERNEL_NAMES
    assert len(set(KERNEL_NAMES)) == len(KERNEL_NAMES) == 7


def test_every_kernel_is_documented() -> None:
    for kernel in KERNELS:
        assert kernel.summary.endswith(".")
        assert kernel.modules
        assert set(kernel.devices) <= {"cpu", "cuda"}
        assert kernel.install is not None or kernel.name == "packing"


def test_no_kernels_leave_a_model_as_transformers_made_it(folder_of: Callable[[str], str]) -> None:
    encoder = load(folder_of("bert"), [])
    assert not classes(encoder) & {CpuLinear, CpuDropout}
    assert {nn.Linear, nn.Dropout} <= classes(encoder)
    assert encoder.backbone.config._attn_implementation == "sdpa"
    assert not encoder.is_packed
    assert encoder.kernel_status() == dict.fromkeys(ALL, NOT_REQUESTED) | {"rms_norm": "not on cpu"}
    assert describe_kernels(encoder.kernel_status()) == "none"


@pytest.mark.parametrize(
    ("kernels", "expected", "attention"),
    [
        (["packing"], {nn.Linear, nn.Dropout}, PACKED),
        (["packing", "blocks"], {nn.Linear, nn.Dropout}, PACKED_IN_BLOCKS),
        (["blocks"], {nn.Linear, nn.Dropout}, "sdpa"),
        (["dropout"], {nn.Linear, CpuDropout}, "sdpa"),
        (["linear"], {CpuLinear, nn.Dropout}, "sdpa"),
        (ALL, {CpuLinear, CpuDropout}, PACKED_IN_BLOCKS),
    ],
)
def test_each_kernel_can_be_disabled(
    folder_of: Callable[[str], str], kernels: list[str], expected: set[type], attention: str
) -> None:
    encoder = load(folder_of("bert"), kernels)
    assert classes(encoder) & {nn.Linear, CpuLinear, nn.Dropout, CpuDropout} == expected
    assert encoder.backbone.config._attn_implementation == attention
    assert encoder.is_packed == ("packing" in kernels)
    assert_close_to_scale(embed(encoder), embed(load(folder_of("bert"), [])))


def test_status_has_the_reason_why_a_kernel_is_not_used(folder_of: Callable[[str], str]) -> None:
    assert load(folder_of("bert"), ALL).kernel_status() == {
        "packing": INSTALLED, "blocks": INSTALLED, "lora": "no such module", "dropout": INSTALLED,
        "linear": INSTALLED, "rms_norm": "not on cpu", "allocator": INSTALLED,
    }  # fmt: skip
    adapted = load(folder_of("llama"), ["blocks", "lora", "rms_norm"], LoraConfig(enabled=True))
    assert adapted.kernel_status() == {
        "packing": NOT_REQUESTED, "blocks": "no packed rows", "lora": INSTALLED, "dropout": NOT_REQUESTED,
        "linear": NOT_REQUESTED, "rms_norm": "not on cpu", "allocator": NOT_REQUESTED,
    }  # fmt: skip
    assert describe_kernels(adapted.kernel_status()) == "lora; blocks no packed rows"
    assert load(folder_of("mpnet"), ALL).kernel_status()["packing"] == "this architecture has an attention of its own"
    eager = load(folder_of("bert"), ALL, attn_implementation="eager")
    assert eager.kernel_status()["packing"] == "model.attn_implementation=eager"


def test_kernels_are_installed_in_the_order_of_the_registry() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1))
    model.config = type("Config", (), {"_attn_implementation": "sdpa"})()
    installed = install_kernels(model, {"linear": "slower here: 0.93"}, lambda _: "cannot be packed")
    assert list(installed.reasons) == ALL
    assert installed.selected == ("packing", "blocks", "lora", "dropout", "rms_norm", "allocator")
    assert installed.status("cuda") == {
        "packing": "cannot be packed", "blocks": "not on cuda", "lora": "no such module",
        "dropout": "not on cuda", "linear": "not on cuda", "rms_norm": "no such module", "allocator": "not on cuda",
    }  # fmt: skip
    assert describe_kernels(installed.status("cpu")) == (
        "dropout, allocator; packing cannot be packed; blocks no packed rows; linear slower here: 0.93"
    )


def test_an_operator_that_this_torch_lacks_is_named(
    folder_of: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert missing_operator("aten.mm", "mkldnn._linear_pointwise") is None
    reason = missing_operator("aten.mm", "aten._no_such_thing")
    assert reason == f"torch {torch.__version__} has no operator aten._no_such_thing (torch 2.11 and 2.13 have)"
    assert any(torch.__version__.startswith(f"{version}.") for version in TESTED_TORCH_VERSIONS)
    for module in ("linear", "attention.packed", "lora"):
        monkeypatch.setattr(f"angle.kernels.{module}.missing_operator", lambda *_: "missing here")
    status = load(folder_of("llama"), ALL, LoraConfig(enabled=True)).kernel_status()
    assert [name for name, state in status.items() if state == "missing here"] == ["blocks", "lora", "linear"]
