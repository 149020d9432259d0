"""Dropout: its distribution, its gradient, and that a random state brings all of it back."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from angle.config import LoraConfig, ModelConfig
from angle.kernels.dropout import CpuDropout, draw_keep_mask, install_dropout, keep_probability
from angle.modeling.encoder import Encoder

MANY = torch.Size((1000, 1000))


def dropped(p: float, shape: tuple[int, ...] = MANY, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    values: Tensor = CpuDropout(p)(torch.ones(shape))
    return values


@pytest.mark.parametrize("p", [1e-3, 0.1, 0.3, 0.5, 0.9])
def test_the_fraction_of_zeros_and_the_scale(p: float) -> None:
    values = dropped(p)
    zeros = (values == 0).double().mean().item()
    assert zeros == pytest.approx(p, abs=4 * (p * (1 - p) / values.numel()) ** 0.5)
    assert keep_probability(p) == pytest.approx(1 - p, abs=1e-5)
    # The scale is that of the fraction which is really kept, so that the mean is preserved.
    torch.testing.assert_close(values[values > 0].unique(), torch.tensor([1 / keep_probability(p)]))


def test_the_smallest_probability_is_exact() -> None:
    """Of the 65536 numbers that an element can be, the threshold divides exactly as many as it should."""
    assert keep_probability(1 / 65536) == 65535 / 65536
    fraction = 1 - draw_keep_mask(torch.Size((4000, 4000)), 1 / 65536).double().mean().item()
    assert fraction == pytest.approx(1 / 65536, rel=4 * (65536 / 16e6) ** 0.5)


@pytest.mark.parametrize("p", [0.1, 0.5])
@pytest.mark.parametrize("distance", [1, 2, 3, 4, 1000])
def test_elements_are_independent_of_their_neighbours(p: float, distance: int) -> None:
    kept = draw_keep_mask(MANY, p).flatten().double() - (1 - p)
    correlation = (kept[:-distance] * kept[distance:]).mean().item() / (p * (1 - p))
    assert abs(correlation) < 4 / MANY.numel() ** 0.5


def test_all_four_elements_of_a_draw_are_dropped_equally_often() -> None:
    fractions = draw_keep_mask(torch.Size((500_000, 4)), 0.1).double().mean(dim=0)
    torch.testing.assert_close(
        fractions, torch.full((4,), 0.9, dtype=torch.double), rtol=0, atol=4 * 0.3 / 500_000**0.5
    )


def test_steps_are_independent() -> None:
    first, second = (draw_keep_mask(MANY, 0.1).double() - 0.9 for _ in range(2))
    assert abs((first * second).mean().item() / 0.09) < 4 / MANY.numel() ** 0.5


def test_a_rng_state_reproduces_output_and_gradient() -> None:
    dropout, values = CpuDropout(0.3), torch.randn(7, 11, requires_grad=True)
    torch.manual_seed(5)
    torch.rand(3)
    state, actual = torch.get_rng_state(), []
    for _ in range(2):
        torch.set_rng_state(state)
        out = dropout(values)
        actual.append((out, *torch.autograd.grad(out.sin().sum(), values), torch.rand(1)))
    assert all(torch.equal(one, other) for one, other in zip(*actual, strict=True))
    assert torch.equal(dropped(0.3, (5, 3), seed=1), dropped(0.3, (5, 3), seed=1))
    assert not torch.equal(dropped(0.3, (50, 3), seed=1), dropped(0.3, (50, 3), seed=2))


@pytest.mark.parametrize("shape", [(1,), (3, 5), (2, 3, 4), (0, 4)])
def test_the_gradient_has_the_mask_of_the_output(shape: tuple[int, ...]) -> None:
    values = torch.full(shape, 2.0, dtype=torch.double, requires_grad=True)
    out = CpuDropout(0.4)(values.transpose(0, -1))
    weights = torch.randn(out.shape, dtype=torch.double)
    (out * weights).sum().backward()
    assert values.grad is not None
    torch.testing.assert_close(values.grad, (weights * out.detach() / 2).transpose(0, -1))


def test_bfloat16_keeps_the_mean() -> None:
    """The factor is not rounded by itself, which at 0.1 would make values smaller by 0.2 %, but the products are."""
    values = CpuDropout(0.1)(torch.full((100, 100), 3.0, dtype=torch.bfloat16))
    assert values.dtype == torch.bfloat16
    assert values.unique().tolist() == [0.0, torch.tensor(3.0 / keep_probability(0.1)).bfloat16().item()]


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_probabilities_0_and_1(p: float) -> None:
    assert torch.equal(dropped(p, (4, 4)), torch.full((4, 4), 1 - p))


def test_evaluation_drops_nothing() -> None:
    values = torch.randn(5, 5)
    assert CpuDropout(0.5).eval()(values) is values


@pytest.mark.parametrize("lora", [None, LoraConfig(enabled=True, dropout=0.25)], ids=["plain", "lora"])
def test_all_dropout_of_an_encoder_is_replaced(folder_of: Callable[[str], str], lora: LoraConfig | None) -> None:
    encoder = Encoder.load(ModelConfig(folder_of("bert")), lora=lora)
    actual = [module for module in encoder.modules() if isinstance(module, nn.Dropout)]
    assert len(actual) >= 10
    assert all(type(module) is CpuDropout for module in actual)
    assert {module.p for module in actual} == ({0.1} if lora is None else {0.1, 0.25})


def test_mode_and_state_dict_are_unchanged() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.3), nn.Sequential(nn.Dropout(0.2)).eval())
    names = list(model.state_dict())
    install_dropout(model)
    assert list(model.state_dict()) == names
    assert [(module.p, module.training) for module in model.modules() if type(module) is CpuDropout] == [
        (0.3, True),
        (0.2, False),
    ]


def test_gradient_checkpointing_repeats_the_mask(folder_of: Callable[[str], str]) -> None:
    gradients = []
    for checkpointing in (False, True):
        encoder = Encoder.load(ModelConfig(folder_of("bert"), gradient_checkpointing=checkpointing)).train()
        tokens = encoder.tokenizer(["a dog chases the cat", "two birds", "x"])
        torch.manual_seed(3)
        encoder(torch.from_numpy(tokens.ids.astype("int64")), tokens.lengths).sin().sum().backward()
        gradients.append([p.grad for p in encoder.parameters() if p.grad is not None])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again, rtol=0, atol=1e-7)
