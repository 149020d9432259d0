"""Linear layers by oneDNN: what they compute, their gradient, when they are used, and what the layers stay."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from angle.config import ModelConfig, PoolingConfig
from angle.kernels.linear import (
    PREPACK_MAX_BYTES,
    PREPACK_MIN_TOKENS,
    SIGNIFICANT_BITS,
    CpuLinear,
    install_linear,
    prepacked_weights,
    round_up_rows,
)
from angle.modeling.encoder import Encoder
from angle.modeling.packing import run_packed


class _Calls(TorchDispatchMode):
    """Counts the products that oneDNN computes."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.mkldnn._linear_pointwise.default:
            self.weights.append(args[1])
        return func(*args, **(kwargs or {}))


@contextmanager
def by_onednn(*, products: int) -> Iterator[None]:
    with _Calls() as calls:
        yield
    assert len(calls.weights) == products


def layer(wide: int = 24, out: int = 40, *, bias: bool = True) -> CpuLinear:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(wide, out, bias=bias))
    install_linear(made)
    assert isinstance(made[0], CpuLinear)
    return made[0]


def test_round_up_rows() -> None:
    for rows in range(1, 5000):
        rounded = round_up_rows(rows)
        assert rows <= rounded <= rows * (1 + 2 ** (1 - SIGNIFICANT_BITS))
        assert rounded % 2 ** max(0, rounded.bit_length() - SIGNIFICANT_BITS) == 0
        assert round_up_rows(rounded) == rounded


def test_round_up_rows_has_32_values_per_octave() -> None:
    assert len({round_up_rows(rows) for rows in range(1025, 2049)}) == 2 ** (SIGNIFICANT_BITS - 1)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 96, 24), (32, 24), (2, 3, 16, 24)])
def test_values_and_gradients_are_those_of_float64(shape: tuple[int, ...], bias: bool) -> None:
    fast = layer(bias=bias)
    exact = nn.Linear(24, 40, bias=bias).double()
    exact.load_state_dict({name: value.double() for name, value in fast.state_dict().items()})
    values = torch.randn(shape, requires_grad=True)
    same = values.detach().double().requires_grad_()
    weights = torch.randn(*shape[:-1], 40)
    with by_onednn(products=2):  # forward, and backward to the values
        actual = fast(values)
        (actual * weights).sum().backward()
    expected = exact(same)
    (expected * weights.double()).sum().backward()
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-5)
    for one, other in ((values, same), *zip(fast.parameters(), exact.parameters(), strict=True)):
        assert one.grad is not None
        assert other.grad is not None
        torch.testing.assert_close(one.grad.double(), other.grad, rtol=1e-5, atol=1e-4)


def test_a_frozen_weight_gets_no_gradient_and_passes_it_on() -> None:
    fast = layer().requires_grad_(False)
    values = torch.randn(32, 24, requires_grad=True)
    fast(values).sum().backward()
    assert fast.weight.grad is None
    assert fast.bias.grad is None
    assert values.grad is not None
    torch.testing.assert_close(values.grad, fast.weight.sum(0).expand(32, 24))


def test_a_second_derivative_is_refused() -> None:
    values = torch.randn(32, 24, requires_grad=True)
    with pytest.raises(RuntimeError, match="once only"):
        torch.autograd.grad(layer()(values).square().sum(), values, create_graph=True)


def test_fallback_to_torch() -> None:
    fast, values = layer(), torch.randn(32, 24)
    with by_onednn(products=0):
        torch.testing.assert_close(fast(torch.randn(67, 24)).shape, torch.Size((67, 40)))
        assert fast(torch.randn(0, 24)).shape == (0, 40)
        assert layer().double()(values.double()).dtype == torch.float64
    with torch.autocast("cpu", torch.bfloat16):
        assert fast(values).dtype == torch.bfloat16
    with by_onednn(products=1):
        fast(values)


def test_names_hooks_and_subclasses_are_unchanged() -> None:
    class Own(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(2, 2), Own(2, 2))
    seen: list[nn.Module] = []
    model[0].register_forward_hook(lambda module, *_: seen.append(module))
    weights = model.state_dict(keep_vars=True)
    install_linear(model)
    assert [type(module) for module in model] == [CpuLinear, Own]
    assert all(weights[name] is value for name, value in model.state_dict(keep_vars=True).items())
    model(torch.randn(4, 2))
    assert seen == [model[0]]


def test_weights_are_prepacked_within_the_context() -> None:
    model, values = nn.Sequential(layer()), torch.randn(64, 24)
    expected = model(values).detach()
    for tokens in (PREPACK_MIN_TOKENS - 1, PREPACK_MIN_TOKENS):
        with torch.no_grad(), prepacked_weights(model, tokens), _Calls() as calls:
            actual = model(values)
        torch.testing.assert_close(actual, expected)
        assert [weight is model[0].weight for weight in calls.weights] == [tokens < PREPACK_MIN_TOKENS]
    with prepacked_weights(model, PREPACK_MIN_TOKENS):  # they have no gradient, so training does not see them
        model(values).sum().backward()
    assert model[0].weight.grad is not None
    with pytest.raises(ZeroDivisionError), prepacked_weights(model, PREPACK_MIN_TOKENS):
        raise ZeroDivisionError
    assert model[0].prepacked is None


def test_large_weights_are_not_prepacked() -> None:
    with torch.device("meta"):
        large = nn.Linear(2**14, PREPACK_MAX_BYTES // 2**16 + 1)
    model = nn.Sequential(layer(), large)
    large.weight = nn.Parameter(torch.empty(1).expand(large.weight.shape))
    install_linear(model)
    with prepacked_weights(model, PREPACK_MIN_TOKENS):
        assert model[0].prepacked is None


def test_batches_are_padded_to_a_supported_number_of_tokens(folder_of: Callable[[str], str]) -> None:
    """Its 67 tokens are padded to 68; the padding is removed from what is returned."""
    model = ModelConfig(folder_of("bert"), kernels=["packing", "linear"])
    encoder = Encoder.load(model, PoolingConfig("avg")).eval()
    layers = [module for module in encoder.modules() if isinstance(module, CpuLinear)]
    ids, lengths = torch.arange(67).remainder(40) + 5, np.array([40, 27])
    with torch.no_grad(), by_onednn(products=2 * len(layers)):
        actual, states = encoder.with_token_states(ids, lengths)
        assert len(run_packed(encoder.backbone, ids, lengths)[0]) == 67
    assert len(actual) == 2
    assert len(states) == 67
    alone = torch.cat([encoder(part, np.array([len(part)])) for part in ids.split([40, 27])])
    torch.testing.assert_close(actual, alone, rtol=1e-5, atol=1e-5)


def test_the_output_can_be_modified_in_place() -> None:
    """As Longformer and DeBERTa do with their queries."""
    layer, plain = nn.Linear(8, 8), nn.Linear(8, 8)
    plain.load_state_dict(layer.state_dict())
    install_linear(layer)
    assert type(layer) is CpuLinear
    for shape in ((4, 16, 8), (64, 8), (8,)):
        inputs = torch.randn(shape)
        for each in (layer, plain):
            actual = each(inputs)
            assert actual.shape == inputs.shape
            actual /= 2
            actual.square().sum().backward()
        torch.testing.assert_close(layer.weight.grad, plain.weight.grad)
