"""Packed rows against padded ones and against one text at a time: states, gradients, directions, windows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import DECODER, MODELS, PADDED, SMALL
from torch import Tensor
from transformers import AutoConfig, AutoModel

from angle.config import BillmConfig, LoraConfig, ModelConfig, PoolingConfig
from angle.modeling import packing
from angle.modeling.encoder import Encoder
from angle.modeling.tiny import tiny_tokenizer

DECODERS = [name for name, further in MODELS.items() if "num_key_value_heads" in further]
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


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5 * wanted.abs().max().item())


def gradients(encoder: Encoder) -> list[Tensor]:
    return [parameter.grad for parameter in encoder.parameters() if parameter.grad is not None]


def check_against_padded(folder: str, start: int | None) -> None:
    """Check that a packed model has the embeddings and gradients of a padded one."""
    packed, padded = (load(folder, packed=kind, start=start).train() for kind in (True, False))
    assert packed.is_packed
    assert not padded.packable
    found, wanted = embed(packed), embed(padded)
    close(found, wanted)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(0))
    for embeddings in (found, wanted):
        (embeddings * weights).sum().backward()
    pairs = list(zip(gradients(packed), gradients(padded), strict=True))
    assert len(pairs) >= 20
    scale = max(theirs.abs().max().item() for _, theirs in pairs)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * scale)


def check_checkpointing(folder: str) -> None:
    """Check that layers which run again in the backward pass see the texts of their own batch."""
    found = []
    for checkpointing in (False, True):
        encoder = load(folder, gradient_checkpointing=checkpointing).train()
        first, second = embed(encoder, TEXTS[:3]), embed(encoder, TEXTS[3:])  # both waiting for their backward pass
        (first.sin().sum() + second.cos().sum()).backward()
        found.append(gradients(encoder))
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(plain, again)


def check_adapters(folder: str, bits: int | None = None) -> None:
    """Check that a packed model with adapters, perhaps on weights of few bits, is the padded one."""
    found = []
    for attention in (None, "eager"):
        torch.manual_seed(0)
        model = ModelConfig(folder, attn_implementation=attention, load_kbit=bits)
        encoder = Encoder.load(model, PoolingConfig("avg"), LoraConfig(enabled=True, dropout=0.0)).eval()
        assert encoder.packable == (attention is None)
        assert attention is not None or packing.works_here(encoder.backbone, training=True)
        with torch.no_grad():  # without these the other half of an adapter has no gradient
            for name, weight in encoder.named_parameters():
                if "lora_B" in name:
                    weight.normal_(std=0.05)
        embeddings = embed(encoder)
        embeddings.sin().sum().backward()
        found.append([embeddings.detach(), *gradients(encoder)])
    scale = max(gradient.abs().max().item() for gradient in found[1][1:])
    assert min(gradient.abs().max().item() for gradient in found[1][1:]) > 0
    close(found[0][0], found[1][0])
    for packed, padded in zip(found[0][1:], found[1][1:], strict=True):
        torch.testing.assert_close(packed, padded, rtol=0, atol=1e-5 * scale)


def cases() -> list[tuple[str, int | None]]:
    return [(name, None) for name in MODELS] + [(name, start) for name in DECODERS for start in (0, 2)]


@pytest.mark.parametrize(("name", "start"), cases())
def test_packed_embeddings_and_gradients_are_the_padded_ones(
    folder_of: Callable[[str], str], name: str, start: int | None
) -> None:
    check_against_padded(folder_of(name), start)


@pytest.mark.parametrize("name", MODELS)
def test_texts_of_a_row_do_not_see_each_other(folder_of: Callable[[str], str], name: str) -> None:
    encoder = load(folder_of(name)).eval()
    together = embed(encoder)
    for number, text in enumerate(TEXTS):
        close(together[number], embed(encoder, [text])[0])


@pytest.mark.parametrize("name", PADDED)
def test_what_cannot_be_packed_is_padded(folder_of: Callable[[str], str], name: str) -> None:
    encoder = load(folder_of(name)).eval()
    assert not encoder.packable
    assert encoder.backbone.config._attn_implementation != packing.IMPLEMENTATION
    close(embed(encoder), embed(load(folder_of(name), packed=False).eval()))


def test_a_model_that_ignores_the_runs_is_padded(
    folder_of: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    attend = packing.attend

    def forgetful(_: Any, query: Tensor, *args: Any, packed_texts: packing.Texts | None = None, **kwargs: Any) -> Any:
        everything = packed_texts and packing.Texts(np.array([query.shape[2]]), query.device)
        return attend(_, query, *args, packed_texts=everything, **kwargs)

    monkeypatch.setattr(packing, "attend", forgetful)
    assert not load(folder_of("bert")).packable
    assert not load(folder_of("llama")).packable


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_checkpointing_sees_the_same_runs(folder_of: Callable[[str], str], name: str) -> None:
    check_checkpointing(folder_of(name))


@pytest.mark.parametrize(("name", "bits"), [*((name, None) for name in MODELS), ("bert", 4), ("qwen3", 4)])
def test_packing_goes_through_adapters(folder_of: Callable[[str], str], name: str, bits: int | None) -> None:
    check_adapters(folder_of(name), bits)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_bfloat16_weights(folder_of: Callable[[str], str], name: str) -> None:
    packed, padded = (load(folder_of(name), packed=kind, dtype="bfloat16").eval() for kind in (True, False))
    assert packed.packable
    with torch.no_grad():
        cosine = torch.nn.functional.cosine_similarity(embed(packed), embed(padded))
    assert cosine.min() > 0.99


@pytest.mark.parametrize("name", MODELS)
def test_autocast(folder_of: Callable[[str], str], name: str) -> None:
    encoder = load(folder_of(name)).eval()
    wanted = embed(encoder)
    with torch.autocast("cpu", torch.bfloat16):
        found = embed(encoder)
    assert found.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(found, wanted).min() > 0.99
    found.sum().backward()


def test_attention_dropout_drops(folder_of: Callable[[str], str]) -> None:
    encoder = Encoder.load(folder_of("bert")).train()
    for module in encoder.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for layer in encoder.backbone.encoder.layer:
        layer.attention.self.dropout.p = 0.5
    assert not torch.equal(embed(encoder), embed(encoder))


def test_the_saved_configuration_names_no_attention_of_ours(folder_of: Callable[[str], str], tmp_path: Path) -> None:
    encoder = load(folder_of("bert")).eval()
    encoder.save(tmp_path / "saved")
    assert packing.IMPLEMENTATION not in (tmp_path / "saved" / "config.json").read_text()
    stock = AutoModel.from_pretrained(tmp_path / "saved")
    assert stock.config._attn_implementation == "sdpa"


def test_attention_with_sinks_is_padded(tmp_path: Path) -> None:
    """GPT-OSS adds a learned score to every softmax, which the packed function does not know."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    config = AutoConfig.for_model(
        "gpt_oss", vocab_size=len(tokenizer), **SMALL | DECODER, num_local_experts=2, num_experts_per_tok=1
    )
    AutoModel.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    encoder = load(str(tmp_path)).eval()
    assert not encoder.packable
    assert encoder.backbone.config._attn_implementation == "eager"


def test_a_model_that_cannot_run_packed_rows_is_padded(
    folder_of: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **kwargs: Any) -> Tensor:
        raise IndexError("positions beyond the table")

    monkeypatch.setattr(packing, "run_packed", broken)
    encoder = load(folder_of("bert"))
    assert not encoder.packable
    assert encoder.backbone.config._attn_implementation == "sdpa"
