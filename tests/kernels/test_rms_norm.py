"""RMS norms as one kernel: which ones are, and that nothing changes. On a CPU, torch composes the same function."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from packed_models import assert_close_to_scale, embed, gradients, load
from torch import Tensor, nn

from angle.kernels import rms_norm as norms
from angle.kernels.rms_norm import _FusedRMSNorm, install_rms_norm


def fused(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, _FusedRMSNorm)]


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "qwen3", "phi3"])
def test_a_model_with_fused_norms_computes_the_same(
    folder_of: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    calls = []

    def noted(*arguments: Any) -> Tensor:
        calls.append(arguments)
        return torch.nn.functional.rms_norm(*arguments)

    encoder = load(folder_of(name)).eval()
    layers = encoder.backbone.config.num_hidden_layers
    assert len(fused(encoder)) == layers * (4 if name == "qwen3" else 2) + 1  # Qwen 3 has two more for its heads
    monkeypatch.setattr(norms, "FUSED_ON", ("cpu",))
    monkeypatch.setattr(norms, "rms_norm", noted)
    actual = embed(encoder)
    assert len(calls) == len(fused(encoder))
    plain = load(folder_of(name), kernels=["packing"]).eval()
    assert not fused(plain)
    expected = embed(plain)
    assert_close_to_scale(actual, expected)
    for embeddings in (actual, expected):
        embeddings.square().sum().backward()
    for ours, theirs in zip(gradients(encoder), gradients(plain), strict=True):
        assert_close_to_scale(ours, theirs)


@pytest.mark.parametrize("name", ["gemma", "gemma3_text", "bert", "modernbert"])
def test_other_norms_are_not_replaced(folder_of: Callable[[str], str], name: str) -> None:
    assert not fused(load(folder_of(name)))


class Norm(nn.Module):
    """An RMS norm that may differ from torch's in what it computes."""

    def __init__(self, scale: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.weight, self.eps, self.scale = nn.Parameter(torch.ones(8)), 1e-6, scale

    def forward(self, values: Tensor) -> Tensor:
        return self.weight * values * self.scale(values.square().mean(-1, keepdim=True))


@pytest.mark.parametrize(
    ("scale", "same"),
    [
        (lambda square: torch.rsqrt(square + 1e-6), True),
        (lambda square: torch.rsqrt(square + 1e-5), False),
        (lambda square: torch.rsqrt(square), False),
        (lambda square: torch.rsqrt(square.clamp(min=1e-6)), False),
        (lambda square: 1 / (square.sqrt() + 1e-6), False),
    ],
)
def test_norms_with_another_epsilon_are_not_replaced(scale: Callable[[Tensor], Tensor], same: bool) -> None:
    model = nn.Sequential(Norm(scale))
    install_rms_norm(model)
    assert bool(fused(model)) == same


def test_a_layer_norm_with_zero_weight_is_not_replaced() -> None:
    """With a weight of 0, every norm returns 0."""
    norm = nn.LayerNorm(8, bias=False)
    nn.init.zeros_(norm.weight)
    model = nn.Sequential(norm)
    install_rms_norm(model)
    assert not fused(model)


def test_gated_norms_are_not_replaced() -> None:
    from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextRMSNormGated

    class Gated(Norm):
        def forward(self, values: Tensor, gate: Tensor | None = None) -> Tensor:
            return super().forward(values if gate is None else values * gate)

    model = nn.Sequential(Gated(lambda square: torch.rsqrt(square + 1e-6)), Qwen3NextRMSNormGated(8))
    install_rms_norm(model)
    assert not fused(model)


def test_a_norm_called_with_keyword_arguments(folder_of: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    norm, values = load(folder_of("llama")).backbone.norm, torch.randn(2, 32)
    monkeypatch.setattr(norms, "FUSED_ON", ("cpu",))
    torch.testing.assert_close(norm(hidden_states=values), norm(values))


def test_autocast_does_not_change_the_dtype(folder_of: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    norm = load(folder_of("llama"), dtype="bfloat16").backbone.norm
    monkeypatch.setattr(norms, "FUSED_ON", ("cpu",))
    with torch.autocast("cpu", torch.bfloat16):
        assert norm(torch.randn(2, 32, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_are_fused_too(folder_of: Callable[[str], str], copied: Callable[[nn.Module], nn.Module]) -> None:
    norm, values = load(folder_of("llama")).backbone.norm, torch.randn(2, 32)
    actual = copied(norm)
    assert isinstance(actual, _FusedRMSNorm)
    assert type(actual) is type(norm)
    assert torch.equal(actual(values), norm(values))
    assert actual.weight is not norm.weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inputs_of_another_dtype_use_the_models_own_code(
    folder_of: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    norm = load(folder_of("llama")).backbone.norm
    monkeypatch.setattr(norms, "FUSED_ON", ("cpu",))
    monkeypatch.setattr(norms, "rms_norm", lambda *_: torch.tensor(0.0))
    values = torch.randn(2, norm.weight.numel()).to(dtype)
    assert norm(values).dim() == (0 if dtype == torch.float32 else 2)
