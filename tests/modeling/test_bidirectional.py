"""BiLLM: which layers see later tokens, on every decoder; padding, adapters, checkpointing, saving, converting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conftest import folders_of
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from angle import TrainConfig, build_config, fit
from angle.config import BillmConfig, ConvertConfig, LoraConfig, ModelConfig, PoolingConfig
from angle.config.build import load_config
from angle.errors import ConfigError
from angle.export.sentence_transformers import convert
from angle.modeling.bidirectional import check_bidirectional_layers, make_bidirectional
from angle.modeling.encoder import Encoder
from angle.modeling.tiny import tiny_tokenizer
from benchmarks.small_models import build

LAYERS = 4
SMALL = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "initializer_range": 0.5,
    "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3,
}  # fmt: skip
DECODERS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 4},
    "qwen2": {},
    "qwen3": {},
    "gemma": {},
    "gemma2": {"sliding_window": 4, "query_pre_attn_scalar": 8},
    "gemma3_text": {"sliding_window": 4, "query_pre_attn_scalar": 8},
    "phi3": {"sliding_window": 4},
}
ATTENTION = [
    (name, attention) for name in DECODERS for attention in ("sdpa", "eager") if (name, attention) != ("gemma2", "sdpa")
]
TEXTS = ["a dog chases the cat", "x", "the woman eats an apple in the garden and two boys carry the box", "two birds"]


def config_of(name: str) -> Any:
    """Return the configuration of a small model."""
    return AutoConfig.for_model(name, vocab_size=len(tiny_tokenizer()), **SMALL | DECODERS[name])


def model_of(name: str, attention: str = "eager", **settings: Any) -> Any:
    """Return a small model, the same each time."""
    torch.manual_seed(1)
    config = config_of(name)
    for key, value in settings.items():
        setattr(config, key, value)
    return AutoModel.from_config(config, attn_implementation=attention).eval()


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Return a function that gives the folder of a small model."""
    return folders_of(tmp_path_factory, model_of)


@torch.no_grad()
def states_of(model: Any, ids: Tensor, mask: Tensor | None = None) -> tuple[Tensor, ...]:
    """Return the states before the first layer and after each one."""
    mask = torch.ones_like(ids) if mask is None else mask
    states: tuple[Tensor, ...] = model(
        input_ids=ids, attention_mask=mask, use_cache=False, output_hidden_states=True
    ).hidden_states
    return states


IDS = torch.arange(4, 16)[None]
OTHER = torch.cat([IDS[:, :-1], torch.tensor([[40]])], dim=1)


@pytest.mark.parametrize("start", [0, 2, 3])
@pytest.mark.parametrize(("name", "attention"), ATTENTION)
def test_later_tokens_change_earlier_states_from_the_first_bidirectional_layer_on(name, attention, start):
    model = model_of(name, attention)
    make_bidirectional(model, start)
    changed = [
        not torch.equal(actual[:, :-1], expected[:, :-1])
        for actual, expected in zip(states_of(model, IDS), states_of(model, OTHER), strict=True)
    ]
    assert changed == [False] * (start + 1) + [True] * (LAYERS - start)
    causal = states_of(model_of(name, attention), IDS)
    assert all(
        torch.equal(actual, expected) for actual, expected in zip(states_of(model, IDS)[:start], causal, strict=False)
    )


@pytest.mark.parametrize(("name", "attention"), ATTENTION)
def test_sliding_windows_extend_to_both_sides(name, attention):
    """In a layer with a window of 4 the first token sees the fourth one, and not the fifth."""
    model = model_of(name, attention)
    make_bidirectional(model, 0)
    kinds = getattr(model.config, "layer_types", None) or ["sliding_attention"] * LAYERS
    windowed = DECODERS[name].get("sliding_window") == 4 and kinds[0] == "sliding_attention"
    for position in (3, 4):
        changed = IDS.clone()
        changed[0, position] = 40
        actual, expected = (states_of(model, ids)[1][0, 0] for ids in (IDS, changed))
        assert torch.equal(actual, expected) is (windowed and position == 4)


def wide(name: str) -> dict[str, int]:
    """Return settings with windows as wide as real ones: transformers' own windows to both sides reach one further."""
    return {"sliding_window": 64} if "sliding_window" in DECODERS[name] else {}


@pytest.mark.parametrize("name", [name for name in DECODERS if name != "gemma3_text"])
def test_all_layers_match_is_causal_of_transformers(name):
    """Gemma 3 has another switch, which narrows its windows as well."""
    model = model_of(name, **wide(name))
    make_bidirectional(model, 0)
    mask = torch.tensor([[1] * 9 + [0] * 3])
    stock = states_of(model_of(name, is_causal=False, **wide(name)), IDS, mask)
    for actual, expected in zip(states_of(model, IDS, mask), stock, strict=True):
        torch.testing.assert_close(actual[:, :9], expected[:, :9], atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize(
    ("name", "switch"), [("llama", {"is_causal": False}), ("gemma3_text", {"use_bidirectional_attention": True})]
)
def test_a_decoder_that_is_bidirectional_by_its_configuration(name, switch, tmp_path):
    model = model_of(name, **switch)
    model.save_pretrained(tmp_path / "made")
    tiny_tokenizer().save_pretrained(tmp_path / "made")
    encoder = Encoder.load(ModelConfig(str(tmp_path / "made"))).eval()
    check_bidirectional_layers(encoder.backbone, encoder.bidirectional_from)
    assert encoder.embedding_config.bidirectional_from == 0
    stock = AutoModel.from_pretrained(tmp_path / "made").eval()
    for text in TEXTS:
        ids = torch.tensor(encoder.tokenizer([text]).ids.astype(np.int64))[None]
        with torch.no_grad():
            expected = stock(input_ids=ids, use_cache=False).last_hidden_state.mean(1)
        torch.testing.assert_close(encoder.encode([text]), expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen3", "phi3"])
def test_the_upper_layers_are_those_of_a_bidirectional_model_on_the_lower_ones(name):
    model, lower = model_of(name, **wide(name)), model_of(name, **wide(name))
    make_bidirectional(model, 2)
    upper = model_of(name, is_causal=False, **wide(name))
    upper.layers = nn.ModuleList(list(upper.layers)[2:])
    upper.config.num_hidden_layers = 2
    lower_states = states_of(lower, IDS)[2]
    with torch.no_grad():
        expected = upper(
            inputs_embeds=lower_states, attention_mask=torch.ones_like(IDS), use_cache=False
        ).last_hidden_state
    torch.testing.assert_close(states_of(model, IDS)[-1], expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("start", [-1, LAYERS])
@pytest.mark.parametrize("name", DECODERS)
def test_without_bidirectional_layers_the_causal_model_is_unchanged(name, start, folder_of):
    model = ModelConfig(folder_of(name))
    encoder = Encoder.load(model, billm=BillmConfig(enabled=True, start_index=start)).eval()
    assert encoder.bidirectional_from is None
    assert torch.equal(encoder.encode(TEXTS), Encoder.load(model).eval().encode(TEXTS))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", DECODERS)
def test_padding_and_other_texts_of_the_batch_change_nothing(name, side, folder_of):
    model = ModelConfig(folder_of(name), padding_side=side)
    encoder = Encoder.load(model, billm=BillmConfig(enabled=True, start_index=1)).eval()
    alone = torch.cat([encoder.encode([text]) for text in TEXTS])
    torch.testing.assert_close(encoder.encode(TEXTS), alone, atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(encoder.encode(TEXTS[::-1], batch_size=3).flip(0), alone, atol=2e-5, rtol=2e-5)
    padded = torch.zeros(1, 40, dtype=torch.long)
    mask = torch.zeros_like(padded)
    tokens = encoder.tokenizer([TEXTS[0]])
    position = slice(40 - len(tokens.ids), 40) if side == "left" else slice(0, len(tokens.ids))
    padded[0, position] = torch.from_numpy(tokens.ids.astype(np.int64))
    mask[0, position] = 1
    with torch.no_grad():
        states = encoder.backbone(input_ids=padded, attention_mask=mask, use_cache=False).last_hidden_state
    torch.testing.assert_close(states[0, position].mean(0), alone[0], atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("name", DECODERS)
def test_checkpointing_changes_no_gradient(name, lora, folder_of):
    """Texts of several lengths run in groups: in the backward pass, each must see its own group's mask again."""
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        encoder = Encoder.load(
            ModelConfig(folder_of(name), gradient_checkpointing=checkpointing),
            lora=LoraConfig(enabled=True, r=4, alpha=8, dropout=0) if lora else None,
            billm=BillmConfig(enabled=True, start_index=1),
        ).train()
        for parameter_name, parameter in encoder.named_parameters():
            if "lora_B" in parameter_name:
                nn.init.normal_(parameter, std=0.1)
        tokens = encoder.tokenizer(TEXTS)
        encoder(torch.from_numpy(tokens.ids.astype(np.int64)), tokens.lengths).square().sum().backward()
        gradients.append({key: value.grad for key, value in encoder.named_parameters() if value.requires_grad})
    assert all(value is not None for value in gradients[0].values())
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("start", [0, 2])
@pytest.mark.parametrize("name", DECODERS)
def test_bidirectional_layers_survive_saving(name, start, folder_of, tmp_path):
    billm = BillmConfig(enabled=True, start_index=start)
    encoder = Encoder.load(ModelConfig(folder_of(name)), PoolingConfig("last"), billm=billm).eval()
    encoder.save(tmp_path / "saved")
    reloaded = Encoder.load(ModelConfig(str(tmp_path / "saved"))).eval()
    assert reloaded.embedding_config == encoder.embedding_config
    assert torch.equal(reloaded.encode(TEXTS), encoder.encode(TEXTS))
    causal = Encoder.load(ModelConfig(folder_of(name)), PoolingConfig("avg")).eval()
    assert (causal.encode(TEXTS) - encoder.encode(TEXTS)).abs().max() > 0.01


def test_bidirectional_layers_survive_saving_an_adapter(folder_of, tmp_path):
    billm, lora = BillmConfig(enabled=True, last_layers=1), LoraConfig(enabled=True, r=4, alpha=8)
    encoder = Encoder.load(ModelConfig(folder_of("qwen3")), lora=lora, billm=billm).eval()
    for name, parameter in encoder.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    encoder.save(tmp_path / "saved")
    reloaded = Encoder.load(ModelConfig(str(tmp_path / "saved"))).eval()
    assert reloaded.bidirectional_from == LAYERS - 1
    torch.testing.assert_close(reloaded.encode(TEXTS), encoder.encode(TEXTS), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.usefixtures("unverified")
def test_converting_a_model_with_all_layers_bidirectional(name, tmp_path):
    from sentence_transformers import SentenceTransformer

    window = {} if name == "gemma3_text" else wide(name)  # which has a switch that keeps the window as it is
    model_of(name, **window).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    encoder = Encoder.load(ModelConfig(str(tmp_path / "model"), max_length=32), billm=BillmConfig(enabled=True)).eval()
    encoder.save(tmp_path / "saved")
    convert(ConvertConfig(ModelConfig(str(tmp_path / "saved")), output_dir=str(tmp_path / "new")))
    converted = SentenceTransformer(str(tmp_path / "new"), device="cpu").encode(TEXTS, convert_to_tensor=True)
    torch.testing.assert_close(converted, encoder.encode(TEXTS), atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(Encoder.load(ModelConfig(str(tmp_path / "new"))).eval().encode(TEXTS), converted,
                               atol=2e-5, rtol=2e-5)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "start", "message"),
    [
        ("llama", 2, "from layer 2 on has no equivalent in sentence-transformers"),
        ("mistral", 0, "MistralModel cannot attend in both directions by its configuration alone"),
    ],
)
@pytest.mark.usefixtures("unverified")
def test_what_cannot_be_converted_is_refused(name, start, message, folder_of, tmp_path):
    encoder = Encoder.load(ModelConfig(folder_of(name)), billm=BillmConfig(enabled=True, start_index=start)).eval()
    encoder.save(tmp_path / "saved")
    with pytest.raises(ConfigError, match=message):
        convert(ConvertConfig(ModelConfig(str(tmp_path / "saved")), output_dir=str(tmp_path / "new")))
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


@pytest.mark.parametrize(("name", "attention"), ATTENTION)
def test_check_bidirectional_layers(name, attention):
    causal, both = model_of(name, attention), model_of(name, attention)
    make_bidirectional(both, 2)
    check_bidirectional_layers(causal, None)
    check_bidirectional_layers(both, 2)
    for model, first_layer, words in (
        (causal, 2, "in no layer, but it should from layer 2 on"),
        (both, None, "from layer 2 on, but it should in no layer"),
        (both, 3, "from layer 2 on, but it should from layer 3 on"),
    ):
        with pytest.raises(ConfigError, match=words):
            check_bidirectional_layers(model, first_layer)


def test_cls_pooling_needs_all_layers_bidirectional(folder_of):
    model = ModelConfig(folder_of("llama"))
    assert Encoder.load(model, PoolingConfig("cls"), billm=BillmConfig(enabled=True)).pooling == "cls"
    with pytest.raises(ConfigError, match="the first token has seen no other; choose avg or last, or billm=all"):
        Encoder.load(model, PoolingConfig("cls"), billm=BillmConfig(enabled=True, start_index=1))


def test_invalid_settings(folder_of, monkeypatch):
    with pytest.raises(ConfigError, match=r"^billm.enabled=true cannot work with BertModel: an encoder attends"):
        Encoder.load(ModelConfig(), billm=BillmConfig(enabled=True))
    model = ModelConfig(folder_of("llama"))
    for billm, message in (
        (
            BillmConfig(enabled=True, start_index=5),
            r"^billm.start_index=5 cannot work: the model has the layers 0 to 3",
        ),
        (BillmConfig(enabled=True, last_layers=5), r"^billm.last_layers=5 cannot work: the model has 4 layers"),
    ):
        with pytest.raises(ConfigError, match=message):
            Encoder.load(model, billm=billm)
    for name in ("LlamaForCausalLM", "llamaforcausallm", "LlamaModel"):
        assert Encoder.load(model, billm=BillmConfig(enabled=True, model_class=name)).bidirectional_from == 0
    with pytest.raises(ConfigError) as caught:
        Encoder.load(model, billm=BillmConfig(enabled=True, model_class="MistralForCausalLM"))
    assert str(caught.value) == (
        "billm.model_class=MistralForCausalLM contradicts the model, which is a LlamaModel: give the right one, or "
        "leave it out."
    )
    monkeypatch.setenv("BiLLM_START_INDEX", "2")
    assert Encoder.load(model, billm=BillmConfig(enabled=True)).bidirectional_from == 2
    assert Encoder.load(model, billm=BillmConfig(enabled=True, start_index=2)).bidirectional_from == 2
    assert Encoder.load(model).bidirectional_from is None
    with pytest.raises(ConfigError, match=r"^BiLLM_START_INDEX=2 contradicts billm.start_index=1"):
        Encoder.load(model, billm=BillmConfig(enabled=True, start_index=1))


def test_a_run_trains_with_bidirectional_layers_and_logs_it(folder_of, tmp_path):
    config = build_config(
        {
            "model": {"name_or_path": folder_of("llama")},
            "billm": {"enabled": True, "last_layers": 1},
            "lora": {"enabled": True, "r": 4, "alpha": 8},
            "data": {"test": {"name_or_path": "sample"}},
            "train": {"max_steps": 3, "batch_size": 8, "output_dir": str(tmp_path / "run")},
        },
        TrainConfig,
    )
    fit(config)
    assert load_config(tmp_path / "run" / "config.yaml").billm == BillmConfig(enabled=True, start_index=LAYERS - 1)
    assert "both directions from layer 3" in " ".join((tmp_path / "run" / "train.log").read_text().split())
    trained = Encoder.load(ModelConfig(str(tmp_path / "run"))).eval()
    check_bidirectional_layers(trained.backbone, LAYERS - 1)
    assert fit(config).already_finished


def test_wrong_attention_direction_is_rejected(folder_of, tmp_path, monkeypatch):
    monkeypatch.setattr("angle.modeling.encoder.make_bidirectional", lambda *_: None)
    config = build_config(
        {
            "model": {"name_or_path": folder_of("llama")},
            "billm": {"enabled": True},
            "train": {"max_steps": 3, "output_dir": str(tmp_path / "run")},
        },
        TrainConfig,
    )
    with pytest.raises(ConfigError, match="attends in both directions in no layer, but it should from layer 0 on"):
        fit(config)
    assert not (tmp_path / "run").exists()


def test_last_layers_counts_the_layers_that_are_kept(folder_of: Callable[[str], str]) -> None:
    model = ModelConfig(folder_of("llama"), layers=2)
    encoder = Encoder.load(model, billm=BillmConfig(enabled=True, last_layers=1)).eval()
    assert encoder.bidirectional_from == 1
    check_bidirectional_layers(encoder.backbone, 1)
    with pytest.raises(ConfigError, match=r"^billm\.start_index=3 cannot work: the model has the layers 0 to 1;"):
        Encoder.load(model, billm=BillmConfig(enabled=True, start_index=3))


@pytest.mark.parametrize("name", ["gemma3n_text", "deepseek_v4"])
def test_check_bidirectional_layers_with_several_states_a_token(name, tmp_path):
    build(name, tmp_path)
    model = AutoModel.from_pretrained(tmp_path)
    check_bidirectional_layers(model, None)
    with pytest.raises(ConfigError, match="It attends in both directions in no layer, but it should from layer 2 on"):
        check_bidirectional_layers(model, 2)
