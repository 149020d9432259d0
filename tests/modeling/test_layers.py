"""Depths: depth n is what the model cut after n layers gives, for every architecture and way of running it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MODELS, PADDED, folders_of, sample_files, start
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from angle import ConfigError, Encoder, ModelConfig, PoolingConfig
from angle.config import BillmConfig, LoraConfig
from angle.modeling.layers import LayerStateSelector, check_depths, find_layers, truncate_layers
from angle.modeling.tiny import tiny_tokenizer

TEXTS = ["a dog chases the cat", "x", "the woman eats an apple in the garden", "two birds", "the cat sleeps"]
DEPTHS = (1, 2, 3)


def load(folder: str, start: int | None = None, lora: LoraConfig | None = None, **settings: object) -> Encoder:
    billm = None if start is None else BillmConfig(enabled=True, start_index=start)
    encoder = Encoder.load(ModelConfig(folder, **settings), PoolingConfig("avg"), lora, billm)
    for module in encoder.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    return encoder


def embed(encoder: Encoder, depths: tuple[int, ...] | None = None) -> Tensor:
    tokens = encoder.tokenizer(TEXTS)
    embeddings: Tensor = encoder(torch.from_numpy(tokens.ids.astype(np.int64)), tokens.lengths, depths)
    return embeddings


@pytest.mark.parametrize("eager", [False, True], ids=["packed", "padded"])
@pytest.mark.parametrize("name", [*MODELS, *PADDED])
def test_states_at_a_depth_match_the_truncated_model(folder_of: Callable[[str], str], name: str, eager: bool) -> None:
    settings = {"attn_implementation": "eager"} if eager else {}
    start = 2 if "num_key_value_heads" in MODELS.get(name, {}) else None
    full = load(folder_of(name), start, **settings)
    with torch.no_grad():
        all_depths = embed(full, DEPTHS)
        assert torch.equal(all_depths[:, -1], embed(full))
        for depth in DEPTHS:
            smaller = load(folder_of(name), start, **settings)
            truncate_layers(smaller.backbone, depth)
            torch.testing.assert_close(embed(smaller), all_depths[:, depth - 1], rtol=0, atol=1e-6)


def test_depths_have_gradients_with_adapters_and_recomputed_layers(folder_of: Callable[[str], str]) -> None:
    gradients = []
    for checkpointing in (False, True):
        lora = LoraConfig(enabled=True, r=4, alpha=8, dropout=0.0)
        encoder = load(folder_of("llama"), 2, lora, gradient_checkpointing=checkpointing).train()
        torch.manual_seed(0)
        for name, parameter in encoder.named_parameters():
            if "lora_" in name:
                nn.init.normal_(parameter, std=0.2)
        embed(encoder, (1, 2)).sin().sum().backward()
        gradients.append({name: p.grad for name, p in encoder.named_parameters() if p.grad is not None})
    plain, recomputed = gradients
    assert {name.split(".layers.")[1][0] for name in plain} == {"0", "1"}
    assert plain.keys() == recomputed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient, rtol=0, atol=1e-6)


def test_token_states_come_in_the_order_of_the_texts(folder_of: Callable[[str], str]) -> None:
    encoder = load(folder_of("bert")).eval()
    tokens = encoder.tokenizer(TEXTS)
    with torch.no_grad():
        embeddings, states = encoder.with_token_states(torch.from_numpy(tokens.ids.astype(np.int64)), tokens.lengths)
    parts = torch.split(states, tokens.lengths.tolist())
    torch.testing.assert_close(torch.stack([part.mean(0) for part in parts]), embeddings, rtol=0, atol=1e-6)
    torch.testing.assert_close(embeddings, embed(encoder), rtol=0, atol=1e-6)


def test_a_model_without_a_list_of_layers_is_refused(folder_of: Callable[[str], str]) -> None:
    encoder = load(folder_of("bert"))
    encoder.backbone.encoder.layer = nn.Sequential(*encoder.backbone.encoder.layer)
    with pytest.raises(ConfigError) as caught:
        LayerStateSelector(encoder.backbone)
    assert str(caught.value) == (
        "BertModel has no list of layers, so it can only be used as a whole: type ese=none, and leave out ese_grid and "
        "model.layers."
    )


def test_a_model_with_other_final_states_is_refused(folder_of: Callable[[str], str]) -> None:
    encoder = load(folder_of("bert"))
    encoder.backbone.encoder.layer[-2].register_forward_hook(
        lambda layer, args, output: output * 2 if len(encoder.backbone.encoder.layer) == 3 else output
    )
    with pytest.raises(ConfigError, match="are not those of a model that ends there"):
        LayerStateSelector(encoder.backbone)


def test_more_layers_than_the_model_has(folder_of: Callable[[str], str]) -> None:
    encoder = load(folder_of("bert"))
    with pytest.raises(ConfigError) as caught:
        truncate_layers(encoder.backbone, 4)
    assert str(caught.value) == "model.layers=4 cannot work: the model has 3; choose 1 to 3."


SMALL_OTHERS: dict[str, dict[str, Any]] = {
    "gpt_neo": {
        "attention_types": [[["global", "local"], 2]], "window_size": 4, "num_layers": 4, "num_heads": 4,
        "hidden_size": 32, "max_position_embeddings": 64,
    },
    "longformer": {
        "attention_window": [4, 4, 8, 8], "num_hidden_layers": 4, "num_attention_heads": 4, "hidden_size": 32,
        "intermediate_size": 48, "max_position_embeddings": 66, "pad_token_id": 1,
    },
    "mamba": {"num_hidden_layers": 4, "hidden_size": 32, "state_size": 4},
    "xlm": {"emb_dim": 32, "n_heads": 4, "n_layers": 4, "max_position_embeddings": 64, "pad_index": 0},
    "xlnet": {"d_model": 32, "n_head": 4, "n_layer": 4, "d_inner": 48},
    "minicpm3": {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 4, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8, "q_lora_rank": 16,
        "kv_lora_rank": 16, "pad_token_id": 0,
    },
    "gpt_neox_japanese": {
        "num_hidden_layers": 4, "hidden_size": 32, "num_attention_heads": 4, "intermediate_multiple_size": 1,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def other_folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Return a function that gives the folder of a small model of an architecture that lists its layers elsewhere."""

    def model_of(name: str) -> Any:
        torch.manual_seed(1)
        config = AutoConfig.for_model(name, vocab_size=len(tiny_tokenizer()), **SMALL_OTHERS[name])
        return AutoModel.from_config(config)

    return folders_of(tmp_path_factory, model_of)


@pytest.mark.parametrize("name", ["gpt_neo", "longformer", "mamba", "xlnet"])
def test_whatever_a_configuration_lists_by_layer_is_cut_with_the_layers(
    other_folder_of: Callable[[str], str], name: str, tmp_path: Path
) -> None:
    """Such a model trained to its end, and then could not be saved or loaded."""
    encoder = load(other_folder_of(name), layers=2).eval()
    encoder.save(tmp_path / "saved")
    with torch.no_grad():
        torch.testing.assert_close(embed(load(str(tmp_path / "saved")).eval()), embed(encoder), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("xlm", r"XLMModel: .*\(ffns.2.lin1.bias is not where the configuration says\); "),
        ("minicpm3", r"MiniCPM3Model: .*\(layers.0.residual_scale would be 0.98"),
        ("gpt_neox_japanese", r"GPTNeoXJapaneseModel: .*\(layers.1.attention.dense_bias is not where the "),
    ],
)
def test_first_layers_that_would_not_load_are_refused(
    other_folder_of: Callable[[str], str], name: str, problem: str
) -> None:
    with pytest.raises(ConfigError, match=rf"^model.layers=2 cannot work with {problem}.*leave the setting out\.$"):
        Encoder.load(ModelConfig(other_folder_of(name), layers=2))
    encoder = Encoder.load(ModelConfig(other_folder_of(name)))
    with pytest.raises(ConfigError, match=r"^ese.enabled=true cannot work with .* type ese=none\.$"):
        check_depths(encoder.backbone)
    assert len(find_layers(encoder.backbone)[2]) == 4


def test_a_run_refuses_depths_that_could_not_be_saved(other_folder_of: Callable[[str], str], tmp_path: Path) -> None:
    words = [f"model.name_or_path={other_folder_of('xlm')}", *sample_files(tmp_path), "ese=on", "train.output_dir=run"]
    done = start("train.py", *words, "ese.compression_size=8", folder=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "ese.enabled=true cannot work with XLMModel" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("bits", [None, 4])
def test_depths_of_models_with_adapters_and_quantised_weights_load(
    folder_of: Callable[[str], str], lora: bool, bits: int | None
) -> None:
    config = LoraConfig(enabled=True, r=2, alpha=4) if lora else None
    check_depths(load(folder_of("llama"), lora=config, load_kbit=bits).backbone)
