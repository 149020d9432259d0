"""Espresso: the reference's values in compat mode, the corrected sum by hand, and the compression."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import REPO
from torch import Tensor

from angle import ConfigError
from angle.config import EseConfig, LossConfig
from angle.modeling.pooling import pool
from angle.objective.combined import CombinedLoss
from angle.objective.espresso import EspressoLoss, compress
from angle.structures import FORMATS, BatchStructure

GOLDENS = np.load(REPO / "tests" / "fixtures" / "espresso.npz")
CASES = [(name, seed, pooling) for name in "ABC" for seed in ("s0", "s1") for pooling in ("cls", "avg", "last")]


def angle_loss(name: str, dimensions: int = 16) -> CombinedLoss:
    # The reference ignored ibn_w in format C.
    weights = LossConfig(1.0, 1.0 if name == "C" else 20.0, 1.0, reverse_w=0.0)
    return CombinedLoss(weights, FORMATS[name], dimensions, duplicates="keep")


def structure_of(name: str, texts: int, labels: Tensor | None = None) -> BatchStructure:
    index = torch.arange(texts).view(-1, len(FORMATS[name].roles))
    if labels is None and name == "A":
        labels = torch.arange(len(index)) % 2
    return BatchStructure.of_columns(FORMATS[name], index, index, None if labels is None else labels.float())


def make_embeddings(texts: int = 12, depths: int = 4, dimensions: int = 16) -> Tensor:
    return torch.randn(texts, depths, dimensions, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize(("name", "seed", "pooling"), CASES)
def test_values_of_angle_emb_in_compat_mode(name, seed, pooling):
    case = f"ese_{name}_{seed}"
    hidden = torch.from_numpy(GOLDENS[f"{case}/hidden"]).requires_grad_()  # (L + 1, N, T, D)
    mask = torch.from_numpy(GOLDENS[f"{case}/mask"])
    layers, lengths = len(hidden) - 1, mask.sum(1).numpy()
    labels = torch.from_numpy(GOLDENS[f"{case}/labels"])[::2, 0] if name == "A" else None
    loss = EspressoLoss(angle_loss(name), EseConfig(True, 8, 1.0, pca=False, compat=True), layers, 16)
    assert loss.depths == (*range(layers - 1), layers)
    states = hidden[list(loss.depths)].permute(1, 2, 0, 3)[mask.bool()]  # (T, K, D)

    result = loss(pool(states, lengths, pooling), structure_of(name, len(mask), labels))
    result.total.backward()

    assert result.total.item() == pytest.approx(float(GOLDENS[f"{case}/{pooling}/loss"]), rel=1e-10)
    expected = GOLDENS[f"{case}/{pooling}/grad"]
    np.testing.assert_allclose(hidden.grad, expected, rtol=1e-8, atol=1e-10 * np.abs(expected).max())


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.0])
def test_the_corrected_sum_matches_reference(name, temperature):
    embeddings, structure, loss = make_embeddings(), structure_of(name, 12), angle_loss(name)
    layers = 4
    espresso = EspressoLoss(loss, EseConfig(True, 6, temperature), layers, 16)
    assert espresso.depths == (1, 2, 3, 4)

    def narrow(depth: int) -> float:
        return loss(embeddings[:, depth - 1, :6], structure).total.item()

    def compression(depth: int) -> float:
        states, target = embeddings[:, depth - 1, :6].numpy(), compress(embeddings[:, depth - 1], 6).numpy()
        distance = np.mean((states - target) ** 2)
        if temperature:
            target_probs = np.exp(target / temperature) / np.exp(target / temperature).sum(1, keepdims=True)
            probs = np.exp(states / temperature) / np.exp(states / temperature).sum(1, keepdims=True)
            distance += temperature * (target_probs * np.log(target_probs / probs)).sum(1).mean()
        return float(distance)

    expected = loss(embeddings[:, 3], structure).total.item() + narrow(4) + compression(4)
    for depth in (1, 2, 3):
        expected += (narrow(depth) + compression(depth)) / (1 + math.log(1 + depth)) / (layers - 1)
    assert espresso(embeddings, structure).total.item() == pytest.approx(expected, rel=1e-9)


def test_every_depth_has_a_gradient():
    embeddings = make_embeddings().requires_grad_()
    EspressoLoss(angle_loss("A"), EseConfig(True, 6), 4, 16)(embeddings, structure_of("A", 12)).total.backward()
    reached = embeddings.grad.abs().sum(dim=(0, 2))
    assert (reached > 0).all()
    # Below the last layer, what lies beyond the first dimensions has no loss, but for the compression's target.
    assert (embeddings.grad[:, :-1, 6:] == 0).all()
    assert (embeddings.grad[:, -1, 6:] != 0).any()


def test_one_layer_alone():
    embeddings = make_embeddings(depths=1)
    loss = EspressoLoss(angle_loss("A"), EseConfig(True, 6), 1, 16)
    assert loss.depths == (1,)
    assert loss(embeddings, structure_of("A", 12)).total.isfinite()


def test_terms_have_names_and_add_up():
    embeddings, structure = make_embeddings(), structure_of("B", 12)
    result = EspressoLoss(angle_loss("B"), EseConfig(True, 6), 4, 16)(embeddings, structure)
    terms = {name: value.item() for name, value in result.terms.items()}
    assert list(terms) == ["cosine", "ibn", "angle", "narrow", "layers", "compression"]
    full = terms["cosine"] + 20 * terms["ibn"] + terms["angle"]
    assert result.total.item() == pytest.approx(full + terms["narrow"] + terms["layers"] + terms["compression"])


def test_more_dimensions_than_there_are():
    with pytest.raises(ConfigError) as caught:
        EspressoLoss(angle_loss("A"), EseConfig(True, 18), 4, 16)
    assert str(caught.value) == (
        "ese.compression_size=18 cannot work: the model's embeddings have 16 dimensions; choose an even number up to "
        "that."
    )


# Its other cases have singular values that are all 1, so that no decomposition is the one.
@pytest.mark.parametrize("case", ["pca_s0_k4", "pca_s1_k4"])
def test_compression_is_exact_where_angle_emb_approximates(case):
    texts, magnitudes = GOLDENS[f"{case}/texts"], GOLDENS[f"{case}/magnitudes"]
    compressed = compress(torch.from_numpy(texts), magnitudes.shape[1]).numpy()
    np.testing.assert_allclose(np.abs(compressed), magnitudes, rtol=1e-6, atol=1e-6 * magnitudes.max())


def test_compression_matches_full_svd():
    texts = torch.randn(20, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    left, singular, _ = torch.linalg.svd(torch.softmax(texts.T @ texts / math.sqrt(12), dim=-1))
    for column in range(12):
        left[:, column] *= left[:, column][left[:, column].abs().argmax()].sign()
    torch.testing.assert_close(compress(texts, 5), texts @ (left * singular)[:, :5], rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(compress(texts.float(), 5).double(), compress(texts, 5), rtol=0, atol=1e-4)


@pytest.mark.parametrize("scale", [0.05, 0.25])
def test_compression_of_float32_is_exact_where_singular_values_are_small(scale):
    texts = scale * torch.randn(64, 96, generator=torch.Generator().manual_seed(1))
    exact = compress(texts.double(), 48)
    errors = (compress(texts, 48).double() - exact).norm(dim=0) / exact.norm(dim=0)
    assert errors.max() < 1e-4


def test_nan_is_propagated():
    embeddings = make_embeddings()
    embeddings[0, 1, 2] = torch.nan
    loss = EspressoLoss(angle_loss("A"), EseConfig(True, 6), 4, 16)(embeddings, structure_of("A", 12))
    assert loss.total.isnan()


def test_compression_has_no_gradient():
    texts = make_embeddings()[:, 0].requires_grad_()
    assert not compress(texts, 4).requires_grad
    torch.rand(3)
    assert torch.equal(compress(texts, 4), compress(texts, 4))
