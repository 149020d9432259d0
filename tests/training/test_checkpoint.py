"""A saved model loaded back into the one that is trained, whatever part of it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from angle.config import LoraConfig, ModelConfig
from angle.modeling.encoder import Encoder
from angle.modeling.token_embeddings import freeze_unused_tokens, partly_trained_embedding
from angle.training.checkpoint import load_saved_model
from benchmarks.small_models import build

TEXTS = ["a fox", "the owl sleeps under the moon"]


def check_restored(encoder: Encoder, config: ModelConfig, folder: Path) -> None:
    """Save an encoder, change all that is trained, load it again, and compare."""
    encoder.save(folder)
    expected = {name: weight.clone() for name, weight in encoder.backbone.state_dict().items()}
    embeddings = encoder.encode(TEXTS)
    trained = [parameter for parameter in encoder.backbone.parameters() if parameter.requires_grad]
    with torch.no_grad():
        for parameter in trained:
            parameter += 1 + torch.rand_like(parameter)
    assert not torch.allclose(encoder.encode(TEXTS), embeddings, atol=1e-2)

    load_saved_model(folder, encoder, config)

    assert trained
    assert all(torch.equal(weight, expected[name]) for name, weight in encoder.backbone.state_dict().items())
    assert torch.equal(encoder.encode(TEXTS), embeddings)
    assert all(parameter.requires_grad for parameter in trained)


@pytest.mark.parametrize("name", ["bert", "roberta", "modernbert", "mpnet", "deberta-v2", "llama", "gemma3_text"])
def test_load_saved_model_with_all_weights_trained(folder_of: Callable[[str], str], tmp_path: Path, name: str) -> None:
    config = ModelConfig(folder_of(name))
    check_restored(Encoder.load(config).eval(), config, tmp_path / "saved")


def test_load_saved_model_with_statistics(tmp_path: Path) -> None:
    """The best model's are those of its step."""
    build("ibert", tmp_path / "ibert")
    config = ModelConfig(str(tmp_path / "ibert"))
    encoder = Encoder.load(config)
    encoder.save(tmp_path / "saved")
    tokens = encoder.tokenizer(TEXTS)
    encoder.train()(torch.from_numpy(tokens.ids).long(), tokens.lengths)
    ranges, expected = encoder.backbone.embeddings.embeddings_act1, Encoder.load(config).backbone.state_dict()
    assert ranges.x_max != expected["embeddings.embeddings_act1.x_max"]
    load_saved_model(tmp_path / "saved", encoder, config)
    assert all(torch.equal(value, expected[name]) for name, value in encoder.backbone.state_dict().items())


def test_load_saved_model_with_partly_trained_embeddings(folder_of: Callable[[str], str], tmp_path: Path) -> None:
    config = ModelConfig(folder_of("bert"))
    encoder = Encoder.load(config).eval()
    freeze_unused_tokens(encoder.backbone, encoder.tokenizer(TEXTS).ids)
    assert partly_trained_embedding(encoder) is not None
    check_restored(encoder, config, tmp_path / "saved")


@pytest.mark.parametrize("frozen", [False, True])
def test_load_saved_model_with_adapters(folder_of: Callable[[str], str], tmp_path: Path, frozen: bool) -> None:
    """Perhaps on top of frozen ones, which stay as they are."""
    lora, config = LoraConfig(enabled=True, r=2), ModelConfig(folder_of("llama"))
    if frozen:
        Encoder.load(config, lora=lora).save(tmp_path / "frozen")
        config.adapter = str(tmp_path / "frozen")
    check_restored(Encoder.load(config, lora=lora).eval(), config, tmp_path / "saved")


def test_load_saved_model_with_legacy_weight_names(folder_of: Callable[[str], str], tmp_path: Path) -> None:
    """Transformers renames them when it loads them, and perhaps back when it saves them."""
    import shutil

    folder = tmp_path / "old"
    shutil.copytree(folder_of("bert"), folder)
    weights = load_file(folder / "model.safetensors")
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    renamed = {}
    for name, weight in weights.items():
        for new_name, old_name in old.items():
            name = name.replace(new_name, old_name)
        renamed[f"bert.{name}"] = weight
    assert any("gamma" in name for name in renamed)
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})
    config = ModelConfig(str(folder))
    check_restored(Encoder.load(config).eval(), config, tmp_path / "saved")
