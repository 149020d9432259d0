"""Folders for both generations of sentence-transformers; `python -m benchmarks.generations` compares what they give."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL
from transformers import AutoConfig, AutoModel

from angle.config import BillmConfig, ModelConfig, PoolingConfig
from angle.export.generations import needs_version_6, shared_model_config, shared_tokenizer_config
from angle.export.sentence_transformers import save_sentence_transformers
from angle.modeling.encoder import Encoder
from angle.modeling.tiny import tiny_tokenizer
from benchmarks.architectures import TEXTS

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}


@pytest.mark.parametrize(
    ("architecture", "settings", "added"),
    [
        ("bert", {}, {}),
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}, {"rope_theta": 7.0}),
        ("llama", {"rope_parameters": YARN | {"rope_theta": 7.0}}, {"rope_theta": 7.0, "rope_scaling": YARN}),
        (
            "phi",
            {"rope_parameters": {"rope_type": "default", "rope_theta": 7.0, "partial_rotary_factor": 0.25}},
            {"rope_theta": 7.0, "partial_rotary_factor": 0.25},
        ),
        (
            "gpt_neox",
            {"rope_parameters": {"rope_type": "default", "rope_theta": 7.0, "partial_rotary_factor": 0.5}},
            {"rotary_emb_base": 7.0, "rotary_pct": 0.5},
        ),
        (
            "gemma3_text",
            {"rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 7.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 5.0},
            }},
            {
                "rope_theta": 7.0, "rope_local_base_freq": 5.0,
                "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            },
        ),
        (
            "modernbert",
            {
                "num_hidden_layers": 4,
                "layer_types": ["full_attention", "sliding_attention"] * 2,
                "rope_parameters": {
                    "full_attention": {"rope_type": "default", "rope_theta": 7.0},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 5.0},
                },
            },
            {"global_rope_theta": 7.0, "local_rope_theta": 5.0, "global_attn_every_n_layers": 2},
        ),
    ],
)  # fmt: skip
def test_settings_are_where_each_generation_reads_them(
    architecture: str, settings: dict[str, Any], added: dict[str, Any], tmp_path: Path
) -> None:
    config = AutoConfig.for_model(architecture, **settings)
    content = json.loads(config.to_json_string(use_diff=False))
    shared = shared_model_config(content)
    assert {name: value for name, value in shared.items() if content.get(name) != value} == added
    (tmp_path / "config.json").write_text(json.dumps(shared))
    read = AutoConfig.from_pretrained(tmp_path)
    assert getattr(read, "rope_parameters", None) == getattr(config, "rope_parameters", None)
    assert getattr(read, "layer_types", None) == getattr(config, "layer_types", None)
    assert not needs_version_6(shared)


@pytest.mark.parametrize(
    "content",
    [
        {"model_type": "llama", "is_causal": False},
        {"model_type": "gemma", "use_bidirectional_attention": True},
        {"model_type": "laguna"},
        {"model_type": "modernbert", "layer_types": ["sliding_attention", "full_attention"]},
    ],
)
def test_what_transformers_4_would_compute_otherwise_needs_version_6(content: dict[str, Any]) -> None:
    assert needs_version_6(shared_model_config(content))
    assert not needs_version_6({"model_type": "gemma3_text", "use_bidirectional_attention": True})


def test_a_tokenizer_is_of_a_class_that_both_have() -> None:
    content = {"tokenizer_class": "TokenizersBackend", "extra_special_tokens": ["<a>"]}
    shared = shared_tokenizer_config(content, uses_token_types=False)
    assert shared["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert (shared["additional_special_tokens"], "extra_special_tokens" in shared) == (["<a>"], False)
    assert shared["model_input_names"] == ["input_ids", "attention_mask"]
    with_types = shared_tokenizer_config(content, uses_token_types=True)
    assert with_types["model_input_names"] == ["input_ids", "token_type_ids", "attention_mask"]


def embed(folder: Path, texts: list[str]) -> torch.Tensor:
    from sentence_transformers import SentenceTransformer

    return torch.from_numpy(SentenceTransformer(str(folder), device="cpu").encode(texts, batch_size=5))


def test_types_of_tokens_that_are_all_zero_reach_no_model(tmp_path: Path) -> None:
    torch.manual_seed(1)
    tokenizer = tiny_tokenizer()
    assert "token_type_ids" in tokenizer.model_input_names
    settings = {"n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.2, "vocab_size": len(tokenizer)}
    AutoModel.from_config(AutoConfig.for_model("gpt2", **settings)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    encoder = Encoder.load(ModelConfig(str(tmp_path / "model"), max_length=64), PoolingConfig("avg")).eval()
    assert not save_sentence_transformers(encoder, tmp_path / "new")
    torch.testing.assert_close(embed(tmp_path / "new", TEXTS), encoder.encode(TEXTS), atol=1e-5, rtol=1e-4)


def test_a_window_to_both_sides_is_kept(folder_of: Callable[[str], str], tmp_path: Path) -> None:
    """EmbeddingGemma's design: `is_causal` beside its own switch would widen the window by one token."""
    gemma = Path(folder_of("gemma3_text"))
    config = json.loads((gemma / "config.json").read_text())
    assert config["sliding_window"] < SMALL["max_position_embeddings"]
    model = AutoModel.from_pretrained(gemma)
    model.config.use_bidirectional_attention, model.config.sliding_window = True, 4
    model.save_pretrained(tmp_path / "model")
    for file in gemma.glob("token*.json"):
        (tmp_path / "model" / file.name).write_bytes(file.read_bytes())
    encoder = Encoder.load(ModelConfig(str(tmp_path / "model"), max_length=48), PoolingConfig("avg")).eval()
    assert encoder.bidirectional_from == 0
    assert not save_sentence_transformers(encoder, tmp_path / "new")
    assert "is_causal" not in json.loads((tmp_path / "new" / "config.json").read_text())
    torch.testing.assert_close(embed(tmp_path / "new", TEXTS), encoder.encode(TEXTS), atol=1e-5, rtol=1e-4)


def test_version_5_refuses_what_it_would_compute_otherwise(folder_of: Callable[[str], str], tmp_path: Path) -> None:
    both = BillmConfig(enabled=True)
    encoder = Encoder.load(ModelConfig(folder_of("llama"), max_length=48), PoolingConfig("avg"), billm=both).eval()
    assert save_sentence_transformers(encoder, tmp_path / "new")
    modules = json.loads((tmp_path / "new" / "modules.json").read_text())
    assert modules[0]["type"] == "sentence_transformers.base.modules.transformer.Transformer"  # 5 has no such module
    torch.testing.assert_close(embed(tmp_path / "new", TEXTS), encoder.encode(TEXTS), atol=1e-5, rtol=1e-4)
