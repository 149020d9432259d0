"""Pooling: golden values, every text by hand, and what other texts must not change."""

import re

import numpy as np
import pytest
import torch
import yaml
from conftest import REPO
from sentence_transformers.sentence_transformer.modules.pooling import Pooling as TheirPooling
from torch import Tensor

from angle.config.pooling import POOLING_NAMES, PoolingConfig
from angle.config.reference import settings_of
from angle.modeling.pooling import POOLINGS, SENTENCE_TRANSFORMERS_KEYS, pool, strategy_of_modes

GOLDENS = np.load(REPO / "tests" / "fixtures" / "pooling.npz")
STRATEGIES = (*POOLING_NAMES, "0", "1")
LENGTHS = (2, 7, 3, 5)


def reference_pool(states: Tensor, strategy: str) -> Tensor:
    """Pool one text, (L, D) -> (D,)."""
    first, mean, largest = states[0], states.sum(0) / len(states), states.max(0).values
    named = {"cls": first, "last": states[-1], "avg": mean, "mean": mean, "max": largest}
    named |= {"cls_avg": (first + mean) / 2, "cls_max": (first + largest) / 2}
    return named[strategy] if strategy in named else states[int(strategy)]


def make_texts() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(length, 6, generator=generator) for length in LENGTHS]


def lengths_of(texts: list[Tensor]) -> np.ndarray:
    return np.array([len(states) for states in texts])


@pytest.mark.parametrize("case", ["right_s0", "right_s1", "left_s0", "left_s1"])
@pytest.mark.parametrize("strategy", ["cls", "last", "avg", "max", "cls_avg", "cls_max"])
def test_golden_values(case: str, strategy: str) -> None:
    hidden, mask = (torch.from_numpy(GOLDENS[f"{case}/{name}"]) for name in ("hidden", "mask"))
    states, lengths = hidden[mask.bool()], mask.sum(1).numpy()
    np.testing.assert_allclose(pool(states, lengths, strategy).numpy(), GOLDENS[f"{case}/{strategy}"], rtol=1e-12)
    single = pool(states.float(), lengths, strategy).numpy()
    np.testing.assert_allclose(single, GOLDENS[f"{case}/{strategy}"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_each_text_matches_reference(strategy: str) -> None:
    texts = make_texts()
    expected = torch.stack([reference_pool(states, strategy) for states in texts])
    torch.testing.assert_close(pool(torch.cat(texts), lengths_of(texts), strategy), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_gradients_match_reference(strategy: str) -> None:
    gradients = []
    for pooled in (
        lambda texts: pool(torch.cat(texts), lengths_of(texts), strategy),
        lambda texts: torch.stack([reference_pool(states, strategy) for states in texts]),
    ):
        texts = [states.requires_grad_() for states in make_texts()]
        pooled(texts).sin().sum().backward()
        gradients.append(torch.cat([states.grad for states in texts if states.grad is not None]))
    torch.testing.assert_close(*gradients, atol=2e-6, rtol=0)


def test_token_index() -> None:
    texts = [states for states in make_texts() if len(states) > 2]
    assert torch.equal(pool(torch.cat(texts), lengths_of(texts), "2"), torch.stack([states[2] for states in texts]))


def test_a_token_index_beyond_the_text() -> None:
    texts = make_texts()
    with pytest.raises(ValueError, match="asks for token") as error:
        pool(torch.cat(texts), lengths_of(texts), "2")
    assert str(error.value) == (
        "pooling.strategy=2 asks for token 2 (counted from 0), but a text has only 2 tokens; choose a smaller "
        "number, or cls, avg or last."
    )


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float64, torch.float64)],
)
def test_states_are_pooled_in_float32_or_better(strategy: str, dtype: torch.dtype, expected: torch.dtype) -> None:
    texts = make_texts()
    states, lengths = torch.cat(texts).to(dtype), lengths_of(texts)
    pooled = pool(states, lengths, strategy)
    assert pooled.dtype == expected
    assert torch.equal(pooled, pool(states.to(expected), lengths, strategy))


def test_the_mean_of_many_bfloat16_states_is_exact() -> None:
    states = torch.ones(1000, 2, dtype=torch.bfloat16)  # in bfloat16 a running sum stops at 256
    assert pool(states, np.array([1000]), "avg").tolist() == [[1.0, 1.0]]


def test_table_schema_and_presets_name_the_same_poolings() -> None:
    assert tuple(POOLINGS) == POOLING_NAMES
    presets = {path.stem: yaml.safe_load(path.read_text()) for path in (REPO / "conf" / "pooling").glob("*.yaml")}
    assert presets == {name: {"strategy": name} for name in ("auto", *POOLING_NAMES)}
    (strategy,) = settings_of(PoolingConfig)
    assert set(re.findall(r"\w+", strategy.meaning)) >= {"auto", *POOLING_NAMES}


@pytest.mark.parametrize("name", [name for name in POOLING_NAMES if POOLINGS[name].sentence_transformers])
def test_the_mean_of_the_modes_is_the_pooling(name: str) -> None:
    texts = make_texts()
    modes = POOLINGS[name].sentence_transformers
    features = {"token_embeddings": torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)}
    features["attention_mask"] = torch.nn.utils.rnn.pad_sequence(
        [torch.ones(len(states)) for states in texts], batch_first=True
    )
    theirs = TheirPooling(6, list(modes))(features)["sentence_embedding"].view(len(texts), len(modes), 6).mean(1)
    torch.testing.assert_close(pool(torch.cat(texts), lengths_of(texts), name), theirs)


def test_the_modes_and_keys_are_those_of_sentence_transformers() -> None:
    assert SENTENCE_TRANSFORMERS_KEYS.keys() == set(TheirPooling.POOLING_MODES)
    known = {mode: strategy_of_modes((mode,)) for mode in ("cls", "mean", "max", "lasttoken", "weightedmean")}
    assert known == {"cls": "cls", "mean": "avg", "max": "max", "lasttoken": "last", "weightedmean": None}
