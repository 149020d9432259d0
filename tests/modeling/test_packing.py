"""Packed rows against padded ones and against one text at a time: states, gradients, directions, windows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import DECODER, MODELS, PADDED, SMALL
from packed_models import (
    TEXTS,
    assert_close_to_scale,
    check_adapters,
    check_against_padded,
    check_checkpointing,
    embed,
    load,
    model_and_start_cases,
)
from torch import Tensor
from transformers import AutoConfig, AutoModel

from angle.kernels.attention import packed
from angle.modeling import trials
from angle.modeling.encoder import Encoder
from angle.modeling.tiny import tiny_tokenizer


@pytest.mark.parametrize(("name", "start"), model_and_start_cases())
def test_packed_embeddings_and_gradients_match_padded_ones(
    folder_of: Callable[[str], str], name: str, start: int | None
) -> None:
    check_against_padded(folder_of(name), start)


@pytest.mark.parametrize("name", MODELS)
def test_texts_of_a_row_do_not_see_each_other(folder_of: Callable[[str], str], name: str) -> None:
    encoder = load(folder_of(name)).eval()
    together = embed(encoder)
    for number, text in enumerate(TEXTS):
        assert_close_to_scale(together[number], embed(encoder, [text])[0])


@pytest.mark.parametrize("name", PADDED)
def test_unsupported_architectures_are_padded(folder_of: Callable[[str], str], name: str) -> None:
    encoder = load(folder_of(name)).eval()
    assert not encoder.packable
    assert not encoder.backbone.config._attn_implementation.startswith(packed.PACKED)
    assert_close_to_scale(embed(encoder), embed(load(folder_of(name), packed=False).eval()))


def test_a_model_that_attends_across_texts_is_padded(
    folder_of: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    attend = packed.attend

    def forgetful(
        _: Any, query: Tensor, *args: Any, packed_texts: packed.PackedTexts | None = None, **kwargs: Any
    ) -> Any:
        everything = packed_texts and packed.PackedTexts(np.array([query.shape[2]]), query.device)
        return attend(_, query, *args, packed_texts=everything, **kwargs)

    monkeypatch.setattr(packed, "attend", forgetful)
    assert not load(folder_of("bert")).packable
    assert not load(folder_of("llama")).packable


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_gradient_checkpointing(folder_of: Callable[[str], str], name: str) -> None:
    check_checkpointing(folder_of(name))


@pytest.mark.parametrize(("name", "bits"), [*((name, None) for name in MODELS), ("bert", 4), ("qwen3", 4)])
def test_adapters(folder_of: Callable[[str], str], name: str, bits: int | None) -> None:
    check_adapters(folder_of(name), bits)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_bfloat16_weights(folder_of: Callable[[str], str], name: str) -> None:
    packed, padded = (load(folder_of(name), packed=is_packed, dtype="bfloat16").eval() for is_packed in (True, False))
    assert packed.packable
    with torch.no_grad():
        cosine = torch.nn.functional.cosine_similarity(embed(packed), embed(padded))
    assert cosine.min() > 0.99


@pytest.mark.parametrize("name", MODELS)
def test_autocast(folder_of: Callable[[str], str], name: str) -> None:
    encoder = load(folder_of(name)).eval()
    expected = embed(encoder)
    with torch.autocast("cpu", torch.bfloat16):
        actual = embed(encoder)
    assert actual.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(actual, expected).min() > 0.99
    actual.sum().backward()


def test_attention_dropout_drops(folder_of: Callable[[str], str]) -> None:
    encoder = Encoder.load(folder_of("bert")).train()
    for module in encoder.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for layer in encoder.backbone.encoder.layer:
        layer.attention.self.dropout.p = 0.5
    assert not torch.equal(embed(encoder), embed(encoder))


def test_the_saved_configuration_has_a_stock_attention(folder_of: Callable[[str], str], tmp_path: Path) -> None:
    encoder = load(folder_of("bert")).eval()
    encoder.save(tmp_path / "saved")
    assert packed.PACKED not in (tmp_path / "saved" / "config.json").read_text()
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

    monkeypatch.setattr(trials, "run_packed", broken)
    encoder = load(folder_of("bert"))
    assert not encoder.packable
    assert encoder.backbone.config._attn_implementation == "sdpa"
