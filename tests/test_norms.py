"""RMS norms as one kernel: which ones are, and that nothing changes. On a CPU, torch composes the same function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_packing import close, embed, gradients, load
from torch import Tensor, nn

from angle.modeling import encoder as encoder_module
from angle.modeling import norms
from angle.modeling.norms import _Fused, speed_up_norms


def fused(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, _Fused)]


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
    found = embed(encoder)
    assert len(calls) == len(fused(encoder))
    with monkeypatch.context() as patch:
        patch.setattr(encoder_module, "speed_up_norms", lambda backbone: None)
        plain = load(folder_of(name)).eval()
    assert not fused(plain)
    wanted = embed(plain)
    close(found, wanted)
    for embeddings in (found, wanted):
        embeddings.square().sum().backward()
    for ours, theirs in zip(gradients(encoder), gradients(plain), strict=True):
        close(ours, theirs)


@pytest.mark.parametrize("name", ["gemma", "gemma3_text", "bert", "modernbert"])
def test_other_norms_stay_as_they_are(folder_of: Callable[[str], str], name: str) -> None:
    assert not fused(load(folder_of(name)))


def test_the_epsilon_is_the_modules_own() -> None:
    class Norm(nn.Module):
        def __init__(self, added: float) -> None:
            super().__init__()
            self.weight, self.eps, self.added = nn.Parameter(torch.full((8,), 0.5)), 1e-6, added

        def forward(self, values: Tensor) -> Tensor:
            return self.weight * values * torch.rsqrt(values.square().mean(-1, keepdim=True) + self.added)

    for added, same in ((1e-6, True), (1e-2, False)):
        model = nn.Sequential(Norm(added))
        speed_up_norms(model)
        assert bool(fused(model)) == same


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inputs_of_another_type_than_the_weights_are_left_to_the_model(
    folder_of: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    norm = load(folder_of("llama")).backbone.norm
    monkeypatch.setattr(norms, "FUSED_ON", ("cpu",))
    monkeypatch.setattr(norms, "rms_norm", lambda *_: torch.tensor(0.0))
    values = torch.randn(2, norm.weight.numel()).to(dtype)
    assert norm(values).dim() == (0 if dtype == torch.float32 else 2)
