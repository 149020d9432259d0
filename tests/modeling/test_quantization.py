"""k-bit weights: they train on a CPU, evaluating changes no gradient, and merging agrees with the adapters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModel, LlamaConfig

from angle import ConfigError, TrainConfig, build_config, fit
from angle.config import ConvertConfig, LoraConfig, ModelConfig
from angle.export.sentence_transformers import convert
from angle.modeling.encoder import Encoder
from angle.modeling.quantization import count_weights
from angle.modeling.tiny import tiny_tokenizer
from angle.tracking.tracker import Tracker

TEXTS = ["a dog chases the cat", "x", "the woman eats an apple in the garden and two boys carry the box", "two birds"]
LORA = LoraConfig(enabled=True, r=4, alpha=8, dropout=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small decoder."""
    path = tmp_path_factory.mktemp("llama")
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer()), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=64, initializer_range=0.2, pad_token_id=0,
    )  # fmt: skip
    AutoModel.from_config(config).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return str(path)


def adapted(folder: str, load_kbit: int | None) -> Encoder:
    """Return an encoder with adapters that do something."""
    torch.manual_seed(0)
    encoder = Encoder.load(ModelConfig(folder, load_kbit=load_kbit), lora=LORA).train()
    for name, parameter in encoder.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.05)
    return encoder


def gradients(encoder: Encoder) -> dict[str, Tensor]:
    """Return the gradients of one backward pass."""
    encoder.zero_grad()
    tokens = encoder.tokenizer(TEXTS)
    encoder(torch.from_numpy(tokens.ids.astype(np.int64)), tokens.lengths).square().sum().backward()
    found = {name: value.grad.clone() for name, value in encoder.named_parameters() if value.grad is not None}
    assert len(found) == 2 * 2 * 7  # two matrices on each of seven layers of two blocks
    return found


@pytest.mark.parametrize("load_kbit", [4, 8])
def test_quantized_weights_are_close_and_smaller(folder, load_kbit):
    quantized, plain = adapted(folder, load_kbit), adapted(folder, None)
    similarity = nn.functional.cosine_similarity(quantized.eval().encode(TEXTS), plain.eval().encode(TEXTS))
    assert 0.9 < similarity.min() < 0.999999

    def memory(encoder: Encoder) -> int:
        return sum(p.numel() * p.element_size() for n, p in encoder.named_parameters() if "proj.base_layer" in n)

    assert memory(quantized) * (7 if load_kbit == 4 else 3.9) < memory(plain)
    assert [name for name, p in quantized.named_parameters() if p.requires_grad] == [
        name for name, p in plain.named_parameters() if p.requires_grad
    ]


@pytest.mark.parametrize("load_kbit", [4, 8])
def test_gradients_after_evaluation_mode(folder, load_kbit):
    """On some CPUs bitsandbytes packs weights anew when it evaluates, and the backward pass reads them wrongly."""
    straight, evaluated = adapted(folder, load_kbit), adapted(folder, load_kbit)
    first = gradients(straight)
    gradients(evaluated)
    evaluated.encode(TEXTS)
    torch.testing.assert_close(gradients(evaluated), first, rtol=0, atol=0)


def test_gradients_match_dequantized_weights(folder):
    quantized = adapted(folder, 4)
    plain = adapted(folder, None)
    weights = {}
    for name, module in quantized.named_modules():
        if name.endswith("base_layer"):
            import bitsandbytes.functional as functional

            weights[name] = functional.dequantize_4bit(module.weight.data, module.weight.quant_state).float()
    for name, module in plain.named_modules():
        if name in weights:
            module.weight.data.copy_(weights[name])
    assert len(weights) == 14
    torch.testing.assert_close(gradients(quantized), gradients(plain), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("load_kbit", [4, 8])
def test_4_bit_weights_are_counted_singly(folder, load_kbit):
    plain, quantized = (
        Encoder.load(ModelConfig(folder)),
        Encoder.load(ModelConfig(folder, load_kbit=load_kbit), lora=LORA),
    )
    frozen = [parameter for name, parameter in quantized.named_parameters() if "lora_" not in name]
    assert sum(map(count_weights, frozen)) == sum(parameter.numel() for parameter in plain.parameters())


@pytest.mark.parametrize("load_kbit", [4, 8])
@pytest.mark.usefixtures("unverified")
def test_merging_changes_no_embedding(folder, load_kbit, tmp_path):
    from sentence_transformers import SentenceTransformer

    encoder = adapted(folder, load_kbit).eval()
    encoder.save(tmp_path / "saved")
    merged = Encoder.load(ModelConfig(str(tmp_path / "saved"))).eval()
    assert merged.embedding_config.load_kbit is None
    difference = 1 - nn.functional.cosine_similarity(merged.encode(TEXTS), encoder.encode(TEXTS))
    assert difference.max() < (1e-5 if load_kbit == 4 else 1e-3)  # int8 rounds its inputs too
    with pytest.raises(ConfigError) as error:
        convert(ConvertConfig(ModelConfig(str(tmp_path / "saved")), merge=False, output_dir=str(tmp_path / "new")))
    assert str(error.value).startswith("merge=false cannot work with this model")
    done = convert(ConvertConfig(ModelConfig(str(tmp_path / "saved")), output_dir=str(tmp_path / "new")))
    assert done.merge_distance is not None
    assert done.merge_distance < (1e-5 if load_kbit == 4 else 1e-3)
    found = SentenceTransformer(str(tmp_path / "new"), device="cpu").encode(TEXTS, convert_to_tensor=True)
    torch.testing.assert_close(found, merged.encode(TEXTS), atol=2e-5, rtol=2e-5)


def config_of(folder: str, path: Path, **model: Any) -> TrainConfig:
    """Return the settings of a short run."""
    return build_config(
        {
            "model": {"name_or_path": folder, "load_kbit": 4} | model,
            "lora": {"enabled": True, "r": 4, "alpha": 8},
            "billm": {"enabled": True, "last_layers": 1},
            "data": {"valid_sts": {"name_or_path": "sample"}},
            "train": {"max_steps": 6, "batch_size": 8, "eval_steps": 2, "save_steps": 1, "output_dir": str(path)},
        },
        TrainConfig,
    )


def test_a_run_resumes_bitwise(folder, tmp_path, monkeypatch):
    fit(config_of(folder, tmp_path / "straight"))
    advance: Callable[[Tracker], None] = Tracker.advance
    done = []

    def advance_or_die(self: Tracker) -> None:
        done.append(1)
        if len(done) == 4:
            raise RuntimeError("killed")
        advance(self)

    monkeypatch.setattr(Tracker, "advance", advance_or_die)
    with pytest.raises(RuntimeError, match="killed"):
        fit(config_of(folder, tmp_path / "broken"))
    fit(config_of(folder, tmp_path / "broken"))
    straight, resumed = (
        load_file(tmp_path / name / "final" / "adapter_model.safetensors") for name in ("straight", "broken")
    )
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    assert any(value.abs().max() > 0 for name, value in straight.items() if "lora_B" in name)


@pytest.mark.parametrize(
    ("model", "lora", "message"),
    [
        ({"load_kbit": 3}, True, r"^model\.load_kbit=3 is not known\. Choose one of: 4, 8\.$"),
        (
            {"load_kbit": 4},
            False,
            r"^model\.load_kbit=4 freezes the weights, .*: add lora=r16\.$",
        ),
    ],
)
def test_invalid_settings(model, lora, message):
    with pytest.raises(ConfigError, match=message):
        build_config({"model": model, "lora": {"enabled": lora}}, TrainConfig)


def test_the_tiny_model_is_not_quantized():
    with pytest.raises(ConfigError, match=r"^model\.load_kbit=4 cannot work with tiny"):
        Encoder.load(ModelConfig(load_kbit=4), lora=LORA)
