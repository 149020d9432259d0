"""GGUF files: a written one against the model it was written from, through training and converting."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from conftest import write_jsonl
from torch import Tensor
from transformers import AutoModel, LlamaConfig, LlamaModel

from angle import TrainConfig, build_config, fit
from angle.config import ConvertConfig, LoraConfig, ModelConfig, PoolingConfig
from angle.errors import ConfigError
from angle.export.sentence_transformers import convert
from angle.modeling.encoder import Encoder

#: One token a byte, as byte-level tokenizers write them, and two joined ones.
TOKENS = ["<s>", "</s>", *(chr(code) for code in range(33, 127)), "Ġ", "Ġa", "th"]
MERGES = ["Ġ a", "t h"]
TEXTS = ["a cat", "that is another thing", "x"]
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def make_model() -> LlamaModel:
    """Return a small model, the same each time."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOKENS), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.2, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return LlamaModel(config).eval()


def in_ggml_order(weight: Tensor, heads: int) -> Tensor:
    """Return rows of queries or keys as llama.cpp wants them: the two halves of a head take turns."""
    return weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the small model as a GGUF file."""
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    model = make_model()
    config, writer = model.config, gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(8)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_merges(MERGES)
    writer.add_token_types([gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.NORMAL] * (len(TOKENS) - 2))
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    for name, weight in model.state_dict().items():
        parts = name.removesuffix(".weight").split(".", 2)
        if parts[0] == "layers":
            heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
            module = NAMES[parts[2]]
            weight = in_ggml_order(weight, heads[module]) if module in heads else weight
            gguf_name = f"blk.{parts[1]}.{module}.weight"
        else:
            gguf_name = {"embed_tokens": "token_embd.weight", "norm": "output_norm.weight"}[parts[0]]
        writer.add_tensor(gguf_name, weight.contiguous().numpy().astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_embeddings_match_the_original_model(file: Path) -> None:
    encoder = Encoder.load(ModelConfig(str(file)), PoolingConfig("avg")).eval()
    assert encoder.is_llm
    assert encoder.packable
    model, tokenizer = make_model(), encoder.tokenizer.tokenizer
    for text in TEXTS:
        ids = torch.tensor([tokenizer(text).input_ids])
        with torch.no_grad():
            expected = model(input_ids=ids).last_hidden_state[0].mean(0)
        torch.testing.assert_close(encoder.encode([text])[0], expected, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("unverified")
def test_converting_makes_a_folder_of_plain_weights(file: Path, tmp_path: Path) -> None:
    folder = convert(ConvertConfig(ModelConfig(str(file)), output_dir=str(tmp_path / "plain"))).folder
    original, plain = (Encoder.load(str(source)).eval().encode(TEXTS) for source in (file, folder))
    torch.testing.assert_close(plain, original, rtol=0, atol=1e-6)
    assert AutoModel.from_pretrained(folder).dtype == torch.float32


def test_adapters_are_trained_saved_and_loaded(file: Path, tmp_path: Path) -> None:
    rows = [{"text": f"a cat {n}", "positive": f"that cat {n}"} for n in range(6)]
    fit(
        build_config(
            {
                "model": {"name_or_path": str(file)},
                "pooling": {"strategy": "last"},
                "lora": {"enabled": True, "r": 4, "alpha": 8},
                "data": {"train": {"name_or_path": str(write_jsonl(tmp_path / "rows.jsonl", rows))}},
                "train": {"batch_size": 2, "warmup_steps": 0, "save_steps": 0, "output_dir": str(tmp_path / "run")},
            },
            TrainConfig,
        )
    )
    trained = Encoder.load(str(tmp_path / "run")).eval()
    assert trained.pooling == "last"
    before = Encoder.load(ModelConfig(str(file)), PoolingConfig("last")).eval()
    assert not torch.allclose(trained.encode(TEXTS), before.encode(TEXTS), atol=1e-5)


def test_load_kbit_is_refused(file: Path) -> None:
    with pytest.raises(ConfigError) as error:
        Encoder.load(ModelConfig(str(file), load_kbit=4), lora=LoraConfig(enabled=True))
    assert str(error.value) == (
        f"model.load_kbit=4 cannot work with small.gguf, whose weights are quantised already: make them plain "
        f"weights by python convert.py model.name_or_path={file} output_dir=plain, and train with "
        f"model.name_or_path=plain."
    )


def test_a_damaged_file(file: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.gguf"
    for size in (100, 1000, 5000):
        damaged.write_bytes(file.read_bytes()[:size])
        with pytest.raises(ConfigError, match=r"model.name_or_path=.*damaged.gguf could not be loaded"):
            Encoder.load(str(damaged))


def test_a_missing_local_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"^model.name_or_path=nope.gguf does not exist"):
        Encoder.load("nope.gguf")


def test_a_missing_file_on_the_hub(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        Encoder.load(str(tmp_path / "none.gguf"))
    assert "none.gguf does not exist: give a folder with weights, a run folder, a .gguf file" in str(error.value)
