"""Packed models beside padded ones: helpers for the tests of packing and of its kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from conftest import MODELS
from torch import Tensor

from angle.config import BillmConfig, LoraConfig, ModelConfig, PoolingConfig
from angle.modeling import trials
from angle.modeling.encoder import Encoder

DECODERS = [name for name, options in MODELS.items() if "num_key_value_heads" in options]
TEXTS = [
    "a dog chases the cat",
    "x",
    "the woman eats an apple in the garden and two boys carry the box to the house by the river",
    "two birds",
    "the cat sleeps",
    "the old man",
    "a cat chases the dog",
]


def load(folder: str, *, packed: bool = True, start: int | None = None, **settings: Any) -> Encoder:
    """Return an encoder that packs, or one that pads and computes attention in the plainest way."""
    model = ModelConfig(folder, attn_implementation=None if packed else "eager", **settings)
    billm = None if start is None else BillmConfig(enabled=True, start_index=start)
    encoder = Encoder.load(model, PoolingConfig("avg"), billm=billm)
    for module in encoder.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    return encoder


def embed(encoder: Encoder, texts: list[str] = TEXTS) -> Tensor:
    tokens = encoder.tokenizer(texts)
    embeddings: Tensor = encoder(torch.from_numpy(tokens.ids.astype(np.int64)), tokens.lengths)
    return embeddings


def assert_close_to_scale(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def gradients(encoder: Encoder) -> list[Tensor]:
    return [parameter.grad for parameter in encoder.parameters() if parameter.grad is not None]


def check_against_padded(folder: str, start: int | None) -> None:
    """Check that a packed model has the embeddings and gradients of a padded one."""
    packed, padded = (load(folder, packed=is_packed, start=start).train() for is_packed in (True, False))
    assert packed.is_packed
    assert not padded.packable
    actual, expected = embed(packed), embed(padded)
    assert_close_to_scale(actual, expected)
    weights = torch.randn(actual.shape, generator=torch.Generator().manual_seed(0))
    for embeddings in (actual, expected):
        (embeddings * weights).sum().backward()
    pairs = list(zip(gradients(packed), gradients(padded), strict=True))
    assert len(pairs) >= 20
    scale = max(theirs.abs().max().item() for _, theirs in pairs)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * scale)


def check_checkpointing(folder: str) -> None:
    """Check that layers which run again in the backward pass see the texts of their own batch."""
    actual = []
    for checkpointing in (False, True):
        encoder = load(folder, gradient_checkpointing=checkpointing).train()
        first, second = embed(encoder, TEXTS[:3]), embed(encoder, TEXTS[3:])  # both waiting for their backward pass
        (first.sin().sum() + second.cos().sum()).backward()
        actual.append(gradients(encoder))
    for without, with_checkpointing in zip(*actual, strict=True):
        torch.testing.assert_close(without, with_checkpointing)


def check_adapters(folder: str, bits: int | None = None) -> None:
    """Check that a packed model with adapters, perhaps on quantised weights, matches the padded one."""
    actual = []
    for attention in (None, "eager"):
        torch.manual_seed(0)
        model = ModelConfig(folder, attn_implementation=attention, load_kbit=bits)
        encoder = Encoder.load(model, PoolingConfig("avg"), LoraConfig(enabled=True, dropout=0.0)).eval()
        assert encoder.packable == (attention is None)
        assert attention is not None or trials.packing_is_exact(encoder.backbone, training=True)
        with torch.no_grad():  # without these the other half of an adapter has no gradient
            for name, weight in encoder.named_parameters():
                if "lora_B" in name:
                    weight.normal_(std=0.05)
        embeddings = embed(encoder)
        embeddings.sin().sum().backward()
        actual.append([embeddings.detach(), *gradients(encoder)])
    scale = max(gradient.abs().max().item() for gradient in actual[1][1:])
    assert min(gradient.abs().max().item() for gradient in actual[1][1:]) > 0
    assert_close_to_scale(actual[0][0], actual[1][0])
    for packed, padded in zip(actual[0][1:], actual[1][1:], strict=True):
        torch.testing.assert_close(packed, padded, rtol=0, atol=1e-5 * scale)


def model_and_start_cases() -> list[tuple[str, int | None]]:
    return [(name, None) for name in MODELS] + [(name, start) for name in DECODERS for start in (0, 2)]
