"""Adapters from before: trained further, frozen below new ones, made on other classes, and what does not fit."""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from conftest import decoder_tokenizer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from angle.config import BillmConfig, LoraConfig, ModelConfig, PoolingConfig
from angle.errors import ConfigError
from angle.modeling.encoder import Encoder
from angle.modeling.weight_files import fingerprint

TEXTS = ["a fox", "the owl sleep under the red moon", "moon"]
LORA = LoraConfig(enabled=True, r=4, alpha=8, dropout=0.0)


def make_base(folder: Path, seed: int = 0, **settings: Any) -> Path:
    """Write a small decoder with its head, as decoders are published."""
    torch.manual_seed(seed)
    tokenizer = decoder_tokenizer(start=True)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        initializer_range=0.2, **settings,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("adapters") / "base")


def load(name_or_path: Path, lora: LoraConfig | None = None, **settings: Any) -> Encoder:
    return Encoder.load(ModelConfig(str(name_or_path), **settings), lora=lora).eval()


def learn(encoder: Encoder, seed: int) -> None:
    """Give the trainable adapter weights that change the embeddings."""
    torch.manual_seed(seed)
    for name, parameter in encoder.named_parameters():
        if parameter.requires_grad:
            assert "lora_" in name
            nn.init.normal_(parameter, std=0.3)


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-5)


def trained(encoder: Encoder) -> int:
    return sum(parameter.numel() for parameter in encoder.parameters() if parameter.requires_grad)


@pytest.fixture(scope="module")
def first(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save an adapter for `base`, with last-token pooling."""
    folder = tmp_path_factory.mktemp("first") / "adapter"
    encoder = Encoder.load(ModelConfig(str(base), max_length=20), PoolingConfig("last"), LORA).eval()
    learn(encoder, 1)
    encoder.save(folder)
    return folder


def test_an_adapter_is_trained_further(base: Path, first: Path, tmp_path: Path) -> None:
    encoder = load(base, adapter=str(first))
    embedding_config = replace(encoder.embedding_config, base_fingerprint=None)
    assert embedding_config == load(first).embedding_config  # the adapter's settings, not the base's
    assert encoder.embedding_config.pooling == "last"
    close(encoder.encode(TEXTS), load(first).encode(TEXTS))
    assert trained(encoder) == trained(load(base, LORA))
    learn(encoder, 2)
    changed = encoder.encode(TEXTS)
    encoder.save(tmp_path / "further")
    assert not [path for path in (tmp_path / "further").iterdir() if path.is_dir()]
    close(load(tmp_path / "further").encode(TEXTS), changed)
    assert (changed - load(first).encode(TEXTS)).abs().max() > 0.01


@pytest.mark.parametrize("setting", ["model.adapter", "model.name_or_path"])
def test_an_adapter_is_frozen_below_a_new_one(setting: str, base: Path, first: Path, tmp_path: Path) -> None:
    settings = {"adapter": str(first)} if setting == "model.adapter" else {}
    second = load(base if settings else first, LoraConfig(enabled=True, r=2, alpha=4), **settings)
    close(second.encode(TEXTS), load(first).encode(TEXTS))
    assert trained(second) == trained(load(base, LORA)) // 2
    learn(second, 2)
    changed = second.encode(TEXTS)
    second.save(tmp_path / "second")
    close(load(tmp_path / "second").encode(TEXTS), changed)

    third = load(tmp_path / "second", LORA)  # and once more
    close(third.encode(TEXTS), changed)
    learn(third, 3)
    third.save(tmp_path / "third")
    close(load(tmp_path / "third").encode(TEXTS), third.encode(TEXTS))
    for original_folder, subfolder in ((first, "frozen-0"), (tmp_path / "second", "frozen-1")):
        frozen, original = (
            peft.load_peft_weights(str(p), "cpu") for p in (tmp_path / "third" / subfolder, original_folder)
        )
        assert all(torch.equal(frozen[name], weight) for name, weight in original.items())
    continued = load(base, adapter=str(tmp_path / "third"))  # the topmost is the one that is trained
    close(continued.encode(TEXTS), third.encode(TEXTS))
    assert trained(continued) == trained(third)


def test_peft_puts_our_adapters_on_models_with_and_without_a_head(base: Path, first: Path, tmp_path: Path) -> None:
    """As angle_emb and others load them: by full names, and names that are not there would only give a warning."""
    second = load(base, LORA, adapter=str(first))
    learn(second, 2)
    second.save(tmp_path / "second")
    ids = torch.tensor([[2, 7, 9, 8]])
    with torch.no_grad():
        expected = second.backbone(input_ids=ids).last_hidden_state
    for plain in (AutoModel.from_pretrained(base), AutoModelForCausalLM.from_pretrained(base)):
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*missing adapter keys")
            model: Any = peft.PeftModel.from_pretrained(plain, tmp_path / "second" / "frozen-0", "below")
            model.load_adapter(tmp_path / "second", "above")
        model.base_model.set_adapter(["below", "above"])
        with torch.no_grad():
            states = model.eval()(input_ids=ids, output_hidden_states=True).hidden_states[-1]
        close(states, expected)
    weights = load_file(tmp_path / "second" / "adapter_model.safetensors")
    with_head = {key.replace("model.model.", "model.", 1) for key in weights if ".model.model.layers." in key}
    assert with_head == weights.keys() - {key for key in weights if ".model.model.layers." in key} != set()


def test_an_adapter_whose_names_disagree_is_refused(base: Path, first: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(first, tmp_path / "changed")
    weights = load_file(folder / "adapter_model.safetensors")
    changed = next(key for key in weights if ".model.model.layers." in key)
    save_file(weights | {changed: weights[changed] + 1}, folder / "adapter_model.safetensors")
    with pytest.raises(ConfigError, match=r"^model.adapter=.* has two weights for layers\.0\..* that differ: save the"):
        load(base, adapter=str(folder))


def test_an_adapter_below_a_new_one_on_4_bit_weights(base: Path, tmp_path: Path) -> None:
    encoder = load(base, LORA, load_kbit=4)
    learn(encoder, 1)
    encoder.save(tmp_path / "first")
    second = load(tmp_path / "first", LORA)
    assert second.load_kbit == 4  # its weights are those that the first one was trained on
    close(second.encode(TEXTS), encoder.encode(TEXTS))
    learn(second, 2)
    second.save(tmp_path / "second")
    close(load(tmp_path / "second").encode(TEXTS), second.encode(TEXTS))


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], "all-linear"])
@pytest.mark.parametrize("setting", ["model.adapter", "model.name_or_path"])
def test_an_adapter_made_on_a_language_model(setting: str, targets: Any, base: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        peft.LoraConfig(
            task_type="CAUSAL_LM", r=4, target_modules=targets, init_lora_weights=False,
            alpha_pattern={"model.layers.0.self_attn.q_proj": 64}, rank_pattern={"model.layers.1.self_attn.v_proj": 2},
        ),
    ).eval()  # fmt: skip
    model.save_pretrained(tmp_path / "adapter")
    assert any(
        key.startswith("base_model.model.model.layers.0") for key in peft.load_peft_weights(tmp_path / "adapter")
    )
    saved = tmp_path / "adapter"
    encoder = load(base, adapter=str(saved)) if setting == "model.adapter" else load(saved)
    for text in TEXTS:
        ids = torch.tensor([encoder.tokenizer.tokenizer(text).input_ids])
        with torch.no_grad():
            states = model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0]
        close(encoder.encode([text])[0], states.mean(0))


def test_an_adapter_without_settings_uses_those_of_its_base(base: Path, tmp_path: Path) -> None:
    billm = BillmConfig(enabled=True, start_index=1)
    model = ModelConfig(str(base), max_length=17, prompt="the {text}")
    described = Encoder.load(model, PoolingConfig("last"), billm=billm)
    described.save(tmp_path / "base")
    plain = peft.get_peft_model(described.backbone, peft.LoraConfig(r=4, target_modules=["q_proj"]))
    plain.save_pretrained(tmp_path / "adapter")
    expected = replace(described.embedding_config, base_fingerprint=fingerprint([tmp_path / "base/model.safetensors"]))
    encoder = load(tmp_path / "base", adapter=str(tmp_path / "adapter"))
    assert encoder.embedding_config == expected
    assert (encoder.pooling, encoder.bidirectional_from) == ("last", 1)


def test_another_pooling_on_an_adapter_gets_its_end_token(base: Path, tmp_path: Path) -> None:
    encoder = Encoder.load(ModelConfig(str(base)), PoolingConfig("avg"), LORA)
    assert encoder.embedding_config.special_tokens == (("<s>",), ())
    encoder.save(tmp_path / "avg")
    reloaded = Encoder.load(ModelConfig(str(base), adapter=str(tmp_path / "avg")), PoolingConfig("last"))
    assert reloaded.embedding_config.special_tokens == (("<s>",), ("</s>",))


def test_an_adapter_of_another_model(first: Path, tmp_path: Path) -> None:
    other = make_base(tmp_path / "other", seed=1)
    with pytest.raises(ConfigError, match=f"{first} was trained on other weights than those that are in {other} now"):
        load(other, adapter=str(first))
    narrow = shutil.copytree(first, tmp_path / "narrow")
    settings = json.loads((narrow / "angle_config.json").read_text())
    (narrow / "angle_config.json").write_text(json.dumps(settings | {"base_fingerprint": None}))
    assert load(other, adapter=str(narrow)).encode(TEXTS).isfinite().all()  # as the message says
    with pytest.raises(ConfigError) as error:
        load(make_base(tmp_path / "narrower", seed=1, num_key_value_heads=2), adapter=str(narrow))
    assert str(error.value).startswith(f"model.adapter={narrow} does not fit LlamaModel: 4 of its weights")
    described = json.loads((narrow / "adapter_config.json").read_text())
    described["target_modules"] = ["q_proj"]
    (narrow / "adapter_config.json").write_text(json.dumps(described))
    with pytest.raises(ConfigError, match=r"does not fit LlamaModel: 24 of its weights and layers have no counterpart"):
        load(make_base(tmp_path / "again"), adapter=str(narrow))


def test_other_adapters_than_lora_are_refused(base: Path, first: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load(base, adapter=str(base))
    assert str(error.value) == f"model.adapter={base} is not an adapter: it has no adapter_config.json."
    model = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        peft.IA3Config(target_modules=["q_proj", "down_proj"], feedforward_modules=["down_proj"]),
    )
    model.save_pretrained(tmp_path / "ia3")
    with pytest.raises(ConfigError) as error:
        load(base, adapter=str(tmp_path / "ia3"))
    assert str(error.value) == (
        f"model.adapter={tmp_path / 'ia3'} is an adapter of type IA3, but only LoRA adapters can be read."
    )
    with pytest.raises(ConfigError, match=r"which is an adapter itself: give its base"):
        load(first, adapter=str(first))
    with pytest.raises(ConfigError, match=r"^model.adapter=./nothing does not exist"):
        load(base, adapter="./nothing")
    with pytest.raises(ConfigError, match=r"^model.adapter=nobody/nothing could not be fetched: "):
        load(base, adapter="nobody/nothing")


def test_a_pickled_adapter_runs_no_code(base: Path, first: Path, tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "harm",)

    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / "adapter_config.json").write_bytes((first / "adapter_config.json").read_bytes())
    torch.save({"weight": Harmful()}, folder / "adapter_model.bin")
    with pytest.raises(ConfigError, match=r"model.adapter=.*pickled could not be read"):
        load(base, adapter=str(folder))
    assert not (tmp_path / "harm").exists()


def test_an_adapter_of_the_first_layers_alone(base: Path, tmp_path: Path) -> None:
    """It is read back onto as many layers, kept apart and merged, and cut further."""
    encoder = load(base, LORA, layers=1, dimensions=20)
    learn(encoder, 3)
    encoder.save(tmp_path / "cut")
    expected = encoder.encode(TEXTS)
    assert expected.shape == (3, 20)
    close(Encoder.load(ModelConfig(str(tmp_path / "cut")), merge=False).eval().encode(TEXTS), expected)
    close(load(tmp_path / "cut").encode(TEXTS), expected)
    close(load(tmp_path / "cut", dimensions=8).encode(TEXTS), expected[:, :8])


def test_an_adapter_of_all_layers_is_truncated_with_them(base: Path, first: Path) -> None:
    encoder = load(first)
    expected = encoder.encode_tokens(encoder.tokenizer(TEXTS), depths=[1])[:, 0]
    close(load(first, layers=1).encode(TEXTS), expected)
    close(Encoder.load(ModelConfig(str(first), layers=1), merge=False).eval().encode(TEXTS), expected)
