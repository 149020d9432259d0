"""Which layers adapters are put on, in models of every kind, and that what is trained there is what is saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from conftest import DECODER, SMALL, folders_of, sample_files, start
from torch import nn
from transformers import AutoConfig, AutoModel

from angle import ConfigError, Encoder, ModelConfig, PoolingConfig
from angle.config import LoraConfig
from angle.modeling.adapters import add_adapters
from angle.modeling.linear_layers import find_linear_layers, shortest_endings
from angle.modeling.tiny import tiny_tokenizer
from angle.structures import Tokens
from benchmarks.small_models import build

TEXTS = ["a dog chases the cat", "birds", "an old man eats the apple in a garden"]
LORA = LoraConfig(enabled=True, r=2, alpha=4, dropout=0.0)
MIXTURE = DECODER | {
    "moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2, "shared_expert_intermediate_size": 16,
}  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {
    "bert": {},
    "llama": DECODER,
    "gpt2": {"n_embd": 32, "n_head": 4},
    "ctrl": {"n_embd": 32, "n_head": 4, "dff": 48},
    "esm": {"position_embedding_type": "rotary", "mask_token_id": 4},
    "longformer": {"attention_window": 8},
    "laguna": MIXTURE,
    "llama4_text": MIXTURE | {"num_local_experts": 4, "intermediate_size_mlp": 48},
    "doge": DECODER,
    "ernie": {},
    "squeezebert": {"embedding_size": 32},
    "falcon_mamba": {"state_size": 4},
}


def model_of(name: str) -> Any:
    torch.manual_seed(1)
    return AutoModel.from_config(AutoConfig.for_model(name, vocab_size=len(tiny_tokenizer()), **SMALL | SETTINGS[name]))


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Return a function that gives the folder of a small random model."""
    return folders_of(tmp_path_factory, model_of)


def load(folder: str, lora: LoraConfig | None = None, **settings: Any) -> Encoder:
    return Encoder.load(ModelConfig(folder, **settings), PoolingConfig("avg"), lora).eval()


@pytest.mark.parametrize(
    ("name", "endings"),
    [
        ("bert", ["intermediate.dense", "key", "output.dense", "query", "value"]),  # not pooler.dense
        ("llama", ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]),
        ("gpt2", ["c_attn", "c_fc", "c_proj"]),
        ("ctrl", ["Wk", "Wq", "Wv", "dense", "ffn.0", "ffn.2"]),  # not h.0
    ],
)
def test_layers_that_states_come_from_get_adapters(name: str, endings: list[str]) -> None:
    model = model_of(name)
    assert shortest_endings(model, find_linear_layers(model)) == endings


def test_layers_that_states_do_not_come_from_get_none() -> None:
    for name, left_out in (("esm", "contact_head"), ("longformer", "query_global"), ("llama4_text", "router")):
        model = model_of(name)
        modules = [module for module, _ in model.named_modules() if left_out in module]
        assert modules
        assert not {*modules} & {*find_linear_layers(model)}


def test_a_model_of_few_positions_gets_adapters() -> None:
    config = AutoConfig.for_model("bert", vocab_size=30, **SMALL | {"max_position_embeddings": 10})
    assert len(find_linear_layers(AutoModel.from_config(config))) == 3 * 6


class Experts(nn.Module):
    """A layer of which a text runs one expert alone: its tokens choose, or it is always the first."""

    def __init__(self, routed: bool) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(32, 32) for _ in range(64))
        self.routed = routed

    def forward(self, x: Any) -> Any:
        return self.experts[int(x.abs().sum() * 1000) % len(self.experts) if self.routed else 0](x)


@pytest.mark.parametrize(("routed", "expected"), [(True, 64), (False, 1)])
def test_of_several_experts_all_get_adapters(routed: bool, expected: int) -> None:
    """Those that one text does not reach, another one does; but not what no text reaches."""
    model = model_of("ernie")
    model.encoder.layer[1].output.dense = nn.Sequential(nn.Linear(48, 32), Experts(routed))
    assert sum("experts" in name for name in find_linear_layers(model)) == expected


def test_the_longest_text_decides_which_layers_get_adapters(tmp_path: Path) -> None:
    """DeepSeek V4 compresses 4 tokens into one in some layers, 128 in others."""
    build("deepseek_v4", tmp_path)
    model = AutoModel.from_pretrained(tmp_path)
    compressors = {module for module, _ in model.named_modules() if module.endswith(".self_attn.compressor.kv_proj")}
    short, long = (compressors.intersection(find_linear_layers(model, length)) for length in (80, 160))
    assert 0 < len(short) < len(compressors)
    assert long == compressors


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zamba2", "gemma3n_text"])
def test_layers_that_training_uses_get_adapters(name: str, tmp_path: Path) -> None:
    """Zamba 2's layers share a block and each uses a part of it; Gemma 3n uses some layers' weights without them."""
    build(name, tmp_path)
    encoder = load(str(tmp_path), LORA)
    for _ in range(2):
        step(encoder, encoder.tokenizer(TEXTS))


def test_statistics_that_no_adapter_holds_are_refused(folder_of: Callable[[str], str]) -> None:
    class Averaged(nn.Module):
        """Centres states by their average so far."""

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("average", torch.zeros(32))

        def forward(self, x: Any) -> Any:
            if self.training:
                self.average = 0.9 * self.average + 0.1 * x.detach().mean((0, 1))
            return x - self.average

    model = model_of("bert")
    add_adapters(model, "base", new_config=LORA)
    model = model_of("bert")
    model.encoder.layer[1].output.LayerNorm = Averaged()
    with pytest.raises(ConfigError) as error:
        add_adapters(model, "base", new_config=LORA)
    assert str(error.value) == (
        "lora.enabled=true cannot work with BertModel, which gathers statistics as it is trained "
        "(encoder.layer.1.output.LayerNorm.average) that are not saved with adapters: type lora=none, or choose "
        "another model."
    )
    assert not model.encoder.layer[1].output.LayerNorm.average.any()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "ctrl", "esm", "laguna", "llama4_text", "doge"])
def test_what_is_trained_is_what_is_saved(name: str, folder_of: Callable[[str], str], tmp_path: Path) -> None:
    encoder = load(folder_of(name), LORA)
    before, tokens = encoder.encode(TEXTS), encoder.tokenizer(TEXTS)
    for _ in range(2):  # in the first step, one half of an adapter has no gradient yet
        step(encoder, tokens)
    trained = encoder.encode(TEXTS)
    assert (trained - before).abs().max() > 1e-3 * before.abs().max()
    encoder.save(tmp_path / "saved")
    for merge in (False, True):
        loaded = Encoder.load(ModelConfig(str(tmp_path / "saved")), merge=merge).eval().encode(TEXTS)
        torch.testing.assert_close(loaded, trained, rtol=0, atol=1e-5 * trained.abs().max().item())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zamba", "deepseek_v2"])
def test_adapters_are_merged_into_shared_weights_and_those_of_experts(name: str, tmp_path: Path) -> None:
    """One by one, where layers share their weights; experts have weights of other names than layers."""
    build(name, tmp_path / "base")
    encoder = load(str(tmp_path / "base"), LORA)
    for parameter in encoder.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.1)
    expected = encoder.encode(TEXTS)
    encoder.save(tmp_path / "saved")
    merged = load(str(tmp_path / "saved")).encode(TEXTS)
    torch.testing.assert_close(merged, expected, rtol=0, atol=1e-4 * expected.abs().max().item())


def step(encoder: Encoder, tokens: Tokens) -> None:
    """Train every adapter: all of them have a gradient."""
    encoder(torch.from_numpy(tokens.ids).long(), tokens.lengths).sin().sum().backward()
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None, name
                parameter -= 0.1 * parameter.grad / parameter.grad.norm().clamp_min(1e-6)
                parameter.grad = None


def test_an_adapter_is_read_as_it_was_written(folder_of: Callable[[str], str], tmp_path: Path) -> None:
    """Peft's own reading renames "shared_experts", as transformers does in older checkpoints, and loses them."""
    encoder = load(folder_of("laguna"), LORA)
    for parameter in encoder.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3)
    encoder.save(tmp_path / "saved")
    loaded = Encoder.load(ModelConfig(str(tmp_path / "saved")), merge=False)
    expected = peft.get_peft_model_state_dict(encoder.backbone)
    assert any("shared_experts" in name for name in expected)
    for name, weight in peft.get_peft_model_state_dict(loaded.backbone).items():
        assert torch.equal(weight, expected[name]), name


def test_target_modules_are_names_of_layers_that_can_be_adapted(folder_of: Callable[[str], str]) -> None:
    with pytest.raises(ConfigError) as error:
        load(folder_of("esm"), LoraConfig(enabled=True, target_modules=["query", "regression"]))
    assert str(error.value) == (
        "lora.target_modules=['query', 'regression'] names regression, which this model does not have. Its linear "
        "layers are: dense, key, query, value."
    )


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("squeezebert", "SqueezeBertModel, which has no linear layers that adapters could be put on: type lora=none"),
        (
            "falcon_mamba",
            r"FalconMambaModel: .*out_proj.*; choose others of its layers \(in_proj, .*\) by lora.target_modules=",
        ),
    ],
)
def test_a_model_that_cannot_have_adapters_is_refused(name: str, reason: str, folder_of: Callable[[str], str]) -> None:
    with pytest.raises(ConfigError, match=rf"^lora.enabled=true cannot work with {reason}"):
        load(folder_of(name), LORA)


@pytest.mark.slow
def test_a_run_with_adapters_on_conv1d(folder_of: Callable[[str], str], tmp_path: Path) -> None:
    words = [f"model.name_or_path={folder_of('gpt2')}", *sample_files(tmp_path), "train.max_steps=2", "lora=r8"]
    done = start("train.py", *words, "train.output_dir=run", folder=tmp_path)
    assert (done.returncode, "fan_in_fan_out" in done.stderr) == (0, False), done.stderr
    done = start("evaluate.py", "model.name_or_path=run", folder=tmp_path)
    assert done.returncode == 0, done.stderr
