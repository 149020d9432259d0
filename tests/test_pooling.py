"""Pooling: golden values, and what padding and other texts must not change."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from angle.modeling.pooling import pool

torch.set_num_threads(1)  # tensors are tiny: threads would only wait for each other

GOLDENS = np.load(Path(__file__).parent / "fixtures" / "pooling.npz")
STRATEGIES = ("cls", "last", "avg", "mean", "max", "cls_avg", "cls_max", "0", "1")
LENGTHS = (2, 7, 3, 5)


def by_hand(states: Tensor, strategy: str) -> Tensor:
    """Pool one text without padding, (L, D) -> (D,)."""
    first, mean, largest = states[0], states.sum(0) / len(states), states.max(0).values
    named = {"cls": first, "last": states[-1], "avg": mean, "mean": mean, "max": largest}
    named |= {"cls_avg": (first + mean) / 2, "cls_max": (first + largest) / 2}
    return named[strategy] if strategy in named else states[int(strategy)]


def padded(texts: list[Tensor], side: str, width: int, filler: float = 1e4) -> tuple[Tensor, Tensor]:
    hidden, mask = torch.full((len(texts), width, texts[0].shape[1]), filler), torch.zeros(len(texts), width).long()
    for number, states in enumerate(texts):
        where = slice(0, len(states)) if side == "right" else slice(width - len(states), width)
        hidden[number, where], mask[number, where] = states, 1
    return hidden, mask


def make_texts() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(length, 6, generator=generator) for length in LENGTHS]


@pytest.mark.parametrize("case", ["right_s0", "right_s1", "left_s0", "left_s1"])
@pytest.mark.parametrize("strategy", ["cls", "last", "avg", "max", "cls_avg", "cls_max"])
def test_wanted_values(case: str, strategy: str) -> None:
    hidden, mask = (torch.from_numpy(GOLDENS[f"{case}/{name}"]) for name in ("hidden", "mask"))
    np.testing.assert_allclose(pool(hidden, mask, strategy).numpy(), GOLDENS[f"{case}/{strategy}"], rtol=1e-12)
    single = pool(hidden.float(), mask, strategy).numpy()
    np.testing.assert_allclose(single, GOLDENS[f"{case}/{strategy}"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_padding_and_other_texts_change_nothing(strategy: str, side: str) -> None:
    texts = make_texts()
    together = pool(*padded(texts, side, 9), strategy)
    for number, states in enumerate(texts):
        alone = pool(states[None], torch.ones(1, len(states)), strategy)[0]
        torch.testing.assert_close(alone, by_hand(states, strategy), atol=2e-6, rtol=0)
        torch.testing.assert_close(together[number], alone, atol=2e-6, rtol=0)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("strategy", ["max", "cls_max"])
def test_a_negative_maximum_is_not_replaced_by_padding(strategy: str, side: str) -> None:
    texts = [-states.abs() - 1 for states in make_texts()]
    pooled = pool(*padded(texts, side, 9, filler=0.0), strategy)
    assert (pooled <= -1).all()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_states_under_padding_get_no_gradient(strategy: str) -> None:
    hidden, mask = padded(make_texts(), "right", 9)
    hidden.requires_grad_()
    pool(hidden, mask, strategy).square().sum().backward()
    assert hidden.grad is not None
    assert not hidden.grad[mask == 0].any()
    assert hidden.grad[mask == 1].any()


@pytest.mark.parametrize("strategy", ["avg", "max", "all"])
def test_states_under_padding_may_be_no_numbers(strategy: str) -> None:
    assert pool(*padded(make_texts(), "left", 9, filler=torch.nan), strategy).isfinite().all()


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_token_number_counts_tokens_only(side: str) -> None:
    texts = [states for states in make_texts() if len(states) > 2]
    expected = torch.stack([states[2] for states in texts])
    assert torch.equal(pool(*padded(texts, side, 9), "2"), expected)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_token_number_that_a_text_does_not_have(side: str) -> None:
    with pytest.raises(ValueError, match="asks for token") as error:
        pool(*padded(make_texts(), side, 9), "2")
    assert str(error.value) == (
        "pooling.strategy=2 asks for token 2 (counted from 0), but a text has only 2 tokens; choose a smaller "
        "number, or cls, avg or last."
    )


@pytest.mark.parametrize("side", ["left", "right"])
def test_all_keeps_every_token_and_clears_the_padding(side: str) -> None:
    hidden, mask = padded(make_texts(), side, 9)
    kept = pool(hidden, mask, "all")
    assert kept.shape == (4, 9, 6)
    assert torch.equal(kept[mask == 1], hidden[mask == 1])
    assert not kept[mask == 0].any()


@pytest.mark.parametrize("strategy", [*STRATEGIES, "all"])
@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float64, torch.float64)],
)
def test_states_are_pooled_in_float32_or_better(strategy: str, dtype: torch.dtype, expected: torch.dtype) -> None:
    hidden, mask = padded(make_texts(), "right", 9)
    hidden = hidden.to(dtype)
    pooled = pool(hidden, mask, strategy)
    assert pooled.dtype == expected
    assert torch.equal(pooled, pool(hidden.to(expected), mask, strategy))


def test_the_mean_of_many_bfloat16_states_is_exact() -> None:
    hidden = torch.ones(1, 1000, 2, dtype=torch.bfloat16)  # in bfloat16 a running sum stops at 256
    assert pool(hidden, torch.ones(1, 1000), "avg").tolist() == [[1.0, 1.0]]
