"""Adapters as one operation: what they compute and save is what peft's own layers do, or less."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig as PeftConfig
from peft import get_peft_model
from torch import Tensor, nn

from angle.config import LoraConfig, ModelConfig, PoolingConfig
from angle.kernels import KERNEL_NAMES
from angle.kernels import lora as low_rank
from angle.kernels.lora import _FusedLora, install_lora
from angle.modeling.encoder import Encoder

TEXTS = ["a little owl sings", "rain", "nobody here knows the way", "rain falls on the roof of a house"]


def loaded(folder: str, *, fast: bool, **settings: Any) -> Encoder:
    """Return a model whose adapter does something, with peft's own layers or ours."""
    kernels = [name for name in KERNEL_NAMES if fast or name != "lora"]
    model = ModelConfig(folder, kernels=kernels, **settings)
    encoder = Encoder.load(model, PoolingConfig("avg"), LoraConfig(True, r=4, alpha=8, dropout=0.2)).train()
    torch.manual_seed(0)
    for name, parameter in encoder.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.1)
    return encoder


def run(encoder: Encoder, *, autocast: bool = False, seed: int = 1) -> tuple[Tensor, list[Tensor]]:
    """Return embeddings of texts, and the gradients of what is trained."""
    tokens = encoder.tokenizer(TEXTS)
    torch.manual_seed(seed)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        embeddings = encoder(torch.from_numpy(tokens.ids.astype(np.int64)), tokens.lengths)
    trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    direction = torch.linspace(-1, 1, embeddings.numel()).view_as(embeddings)
    return embeddings.detach(), list(torch.autograd.grad((embeddings * direction).sum(), trained))


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual.float() - expected.float()).norm() / expected.float().norm())


@pytest.mark.parametrize("name", ["llama", "bert"])
@pytest.mark.parametrize("bits", [None, 4, 8])
def test_embeddings_and_gradients_match_peft(folder_of: Callable[[str], str], name: str, bits: int | None) -> None:
    """With dropout: both draw the same numbers."""
    ours, theirs = (run(loaded(folder_of(name), fast=fast, load_kbit=bits)) for fast in (True, False))
    assert relative_error(ours[0], theirs[0]) < 2e-6
    assert len(ours[1]) == len(theirs[1]) > 0
    assert max(map(relative_error, ours[1], theirs[1])) < 5e-6


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_autocast_is_as_accurate_as_in_peft(folder_of: Callable[[str], str], dtype: str) -> None:
    """The measure is float32, with the weights rounded as they are."""
    exact = loaded(folder_of("llama"), fast=False, dtype=dtype)
    base = [parameter for parameter in exact.parameters() if not parameter.requires_grad]
    for parameter in base:
        parameter.data = parameter.data.float()
    expected = run(exact)
    errors = {}
    for fast in (True, False):
        actual = run(loaded(folder_of("llama"), fast=fast, dtype=dtype), autocast=True)
        errors[fast] = np.median([relative_error(actual[0], expected[0]), *map(relative_error, actual[1], expected[1])])
    assert 0 < errors[True] < 1.2 * errors[False]


def test_several_adapters_add_up_and_frozen_ones_get_no_gradient(
    folder_of: Callable[[str], str], tmp_path: Path
) -> None:
    loaded(folder_of("llama"), fast=True).save(tmp_path / "first")
    actual = []
    for fast in (True, False):
        encoder = loaded(folder_of("llama"), fast=fast, adapter=str(tmp_path / "first"))
        assert {name.split(".")[-2] for name, p in encoder.named_parameters() if "lora_" in name} == {
            "default",
            "frozen-0",
        }
        actual.append(run(encoder))
    assert relative_error(actual[0][0], actual[1][0]) < 2e-6
    assert max(map(relative_error, actual[0][1], actual[1][1])) < 5e-6


class _Saved:
    """Sums the bytes that are saved for the backward pass, each storage once."""

    def __init__(self) -> None:
        self.storages: dict[int, int] = {}
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self._note, lambda tensor: tensor)

    def _note(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self.storages[storage._cdata] = storage.nbytes()
        return tensor


def test_an_input_is_saved_once_for_the_layers_that_share_it() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(512, 8), nn.Linear(512, 8)

        def forward(self, values: Tensor) -> Tensor:
            return self.one(values) + self.other(values)

    model: Any = get_peft_model(Pair(), PeftConfig(r=2, lora_dropout=0.1, target_modules=["one", "other"])).train()
    install_lora(model)
    values = torch.randn(640, 512, requires_grad=True) * 1
    saved = _Saved()
    with saved.hooks:
        model(values)
    elements = values.numel()
    # Four bytes an element for the input, one for each layer's dropout, and what is as narrow as the rank.
    assert 6 * elements <= sum(saved.storages.values()) < 6.5 * elements


def _adapted(**settings: Any) -> Any:
    model = nn.Sequential(nn.Linear(6, 5))
    made: Any = get_peft_model(model, PeftConfig(r=2, target_modules=["0"], init_lora_weights=False, **settings))
    install_lora(made)
    return made


def test_frozen_adapters_save_nothing_of_the_inputs_width() -> None:
    model = get_peft_model(nn.Sequential(nn.Linear(512, 8)), PeftConfig(r=2, target_modules=["0"]))
    install_lora(model)
    values = torch.randn(640, 512, requires_grad=True) * 1
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    saved = _Saved()
    with saved.hooks:
        model(values)
    assert 0 < sum(saved.storages.values()) < values.nbytes / 10


def test_one_dimensional_input_and_dropout_module_modes() -> None:
    torch.manual_seed(0)
    model = _adapted(lora_dropout=0.5).train()
    layer, values = model.base_model.model[0], torch.randn(3, 6)
    assert not torch.equal(layer(values), layer(values))
    layer.lora_dropout.eval()
    torch.testing.assert_close(torch.stack([layer(row) for row in values]), layer(values))
    layer.lora_dropout.train()["default"].p = 1.0
    torch.testing.assert_close(layer(values), layer.base_layer(values))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_are_fused_too(copied: Callable[[Any], Any]) -> None:
    model, values = _adapted(), torch.randn(3, 6)
    actual = copied(model)
    assert isinstance(actual.base_model.model[0], _FusedLora)
    assert torch.equal(actual(values), model(values))


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}, {"lora_bias": True}])
def test_every_kind_of_adapter_can_be_merged_and_disabled(settings: dict[str, bool]) -> None:
    torch.manual_seed(0)
    model, values = _adapted(**settings), torch.randn(3, 6)
    layer = model.base_model.model[0]
    assert isinstance(layer, _FusedLora)
    with torch.no_grad():
        for magnitude in layer.lora_magnitude_vector.parameters():
            magnitude.mul_(2)
    before = layer(values)
    with model.disable_adapter():
        disabled = layer(values)
    torch.testing.assert_close(disabled, layer.base_layer(values))
    layer.merge()
    torch.testing.assert_close(layer(values), before)
    torch.testing.assert_close(layer.base_layer(values), before)


def test_gradcheck() -> None:
    torch.manual_seed(0)
    output, values = torch.randn(2, 3, 4), torch.randn(2, 3, 5)
    down, up = torch.randn(2, 5), torch.randn(4, 2)

    def add(output: Tensor, values: Tensor, down: Tensor, up: Tensor) -> Tensor:
        torch.manual_seed(1)  # the same elements are dropped each time
        added: Tensor = low_rank._AddLowRank.apply(
            output * 1, values, down, up, 0.5, 0.25, torch.float64, low_rank.cpu_linear
        )
        return added

    inputs = [tensor.double().requires_grad_() for tensor in (output, values, down, up)]
    assert torch.autograd.gradcheck(add, inputs)


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "view"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_layouts_of_the_output(layout: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    output, values = torch.randn(2, 3, 4).to(dtype), torch.randn(2, 3, 5)
    down, up = torch.randn(2, 5), torch.randn(4, 2)
    expected = (output.float() + 0.5 * values @ down.t() @ up.t()).to(dtype)
    if layout == "transposed":
        output = output.transpose(0, 1).contiguous().transpose(0, 1)
    elif layout == "view":
        output = output.view(6, 4).view(2, 3, 4)
    actual: Any = low_rank._AddLowRank.apply(output, values, down, up, 0.5, 0.0, torch.float32, low_rank.cpu_linear)
    assert actual.dtype == dtype
    torch.testing.assert_close(actual, expected)


def test_a_second_derivative_is_refused() -> None:
    model, values = _adapted(), torch.randn(3, 6, requires_grad=True)
    with pytest.raises(RuntimeError, match="differentiated once only"):
        torch.autograd.grad(model(values).square().sum(), values, create_graph=True)
