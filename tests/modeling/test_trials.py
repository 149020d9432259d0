"""What is tried on a model when it is loaded: neighbours and padding, long texts, position tables, direction."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import DECODER, MODELS, PADDED, SMALL, folders_of, sample_files, start
from torch import Tensor
from transformers import AutoConfig, AutoModel

from angle import ConfigError, Encoder, ModelConfig, PoolingConfig
from angle.export.card_model import SentenceTransformersSupport
from angle.export.hub import stage_files
from angle.export.sentence_transformers import save_sentence_transformers
from angle.modeling import trials
from angle.modeling.packing import Layout
from angle.modeling.probing import differ
from angle.modeling.tiny import tiny_tokenizer
from benchmarks.small_models import build

#: Rotary positions that change with the longest text of a batch, beyond 16 tokens.
DYNAMIC = {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 8.0}}
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 100.0, "original_max_position_embeddings": 16, "short_factor": [1.0] * 4,
    "long_factor": [8.0] * 4,
}  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {
    "fnet": {},
    "yoso": {},
    "convbert": {"head_ratio": 2, "embedding_size": 32},
    "funnel": {
        "d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 48, "block_sizes": [2, 2], "architectures": ["FunnelModel"],
    },
    "dynamic": {"model_type": "llama", **DECODER, **DYNAMIC, "max_position_embeddings": 16},
    "longrope": {
        "model_type": "phi3", **DECODER, "rope_parameters": LONGROPE, "original_max_position_embeddings": 16,
    },
    "xlm-roberta": {"pad_token_id": 21},
    "gpt2": {"n_embd": 32, "n_head": 4, "max_position_embeddings": 32, "bos_token_id": 2, "eos_token_id": 3},
    "biogpt": {"max_position_embeddings": 32},
    "xlm": {"emb_dim": 32, "n_heads": 4, "n_layers": 2, "max_position_embeddings": 32, "pad_index": 0},
    "clip_text_model": {"max_position_embeddings": 77, "bos_token_id": 2, "eos_token_id": 3},
    "gpt_neo": {"attention_types": [[["global"], 3]], "max_position_embeddings": 64},
    "causal_bert": {"model_type": "bert", "is_decoder": True},
    "xlnet": {"d_model": 32, "n_head": 4, "n_layer": 2, "d_inner": 48},
    "bert-generation": {"bos_token_id": 2, "eos_token_id": 3},
    "doge": DECODER,
    "mra": {"max_position_embeddings": 128},
    "perceiver": {"d_model": 32, "d_latents": 32, "num_latents": 4},
}  # fmt: skip
SENTENCE = "a dog chases the cat and two birds watch the old man who eats an apple in the garden"
WORDS = SENTENCE.split()
TEXTS = [" ".join((WORDS * 3)[first : first + count]) for first, count in enumerate([1, 3, 20, 8, 3, 48, 8, 12, 5, 30])]


def model_of(name: str) -> Any:
    torch.manual_seed(1)
    settings = dict(SETTINGS[name])
    model_type = settings.pop("model_type", name)
    small = {"pad_token_id": 0, "initializer_range": 0.2} if "d_model" in settings else SMALL
    config = AutoConfig.for_model(model_type, vocab_size=len(tiny_tokenizer()), **small | settings)
    return AutoModel.from_config(config)


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Return a function that gives the folder of a small random model."""
    return folders_of(tmp_path_factory, model_of)


def load(folder: str, pooling: str = "avg", **settings: Any) -> Encoder:
    return Encoder.load(ModelConfig(folder, **settings), PoolingConfig(pooling)).eval()


def by_hand(folder: str, encoder: Encoder) -> Tensor:
    """Return the mean states of texts, each run alone by a model that transformers has just loaded."""
    rows = []
    for text in TEXTS:
        model = AutoModel.from_pretrained(folder).eval()
        with torch.no_grad():
            ids = torch.from_numpy(encoder.tokenizer([text]).ids).long()
            rows.append(model(input_ids=ids[None]).last_hidden_state[0].mean(0))
    return torch.stack(rows)


def assert_exact(folder: str, encoder: Encoder) -> None:
    """Check every text alone, among others, and as transformers runs it."""
    expected = by_hand(folder, encoder)
    alone = torch.cat([encoder.encode([text]) for text in TEXTS])
    tokens = encoder.tokenizer(TEXTS)
    together = encoder(torch.from_numpy(tokens.ids).long(), tokens.lengths).detach()
    for actual in (alone, encoder.encode(TEXTS), encoder.encode(TEXTS[::-1], batch_size=3).flip(0), together):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("name", ["fnet", "yoso", "convbert", "funnel", "longrope"])
def test_texts_that_padding_would_change_run_one_length_at_a_time(folder_of: Callable[[str], str], name: str) -> None:
    encoder = load(folder_of(name))
    assert encoder.layout is Layout.EQUAL_LENGTHS
    assert encoder.padding_fraction(encoder.tokenizer(TEXTS).lengths) == 0
    assert_exact(folder_of(name), encoder)


def test_what_no_layout_makes_exact_is_refused(folder_of: Callable[[str], str]) -> None:
    """The angles of dynamic positions stay those of the longest text so far."""
    with pytest.raises(ConfigError, match=r"dynamic, so that texts beyond 16 tokens .* type model.max_length=16\.$"):
        load(folder_of("dynamic"))
    encoder = load(folder_of("dynamic"), max_length=16)
    assert encoder.layout is Layout.PACKED
    assert_exact(folder_of("dynamic"), encoder)


def test_embeddings_that_depend_on_chance_are_refused(
    folder_of: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_padded = trials.run_padded
    monkeypatch.setattr(
        trials, "run_padded", lambda *args, **options: [states + torch.rand(1) for states in run_padded(*args)]
    )
    with pytest.raises(ConfigError, match=r"FNetModel gives a text embeddings that depend on the texts before it, or"):
        load(folder_of("fnet"))


def test_proved_architectures_are_those_of_the_tests_of_packing() -> None:
    assert MODELS.keys() | PADDED.keys() == trials.PROVED


def test_the_padding_token_of_the_model_inside_a_text(folder_of: Callable[[str], str]) -> None:
    """The model takes token 21 for padding, and does not count it in positions; the tokenizer writes it in texts."""
    encoder = load(folder_of("xlm-roberta"))
    assert 21 in encoder.tokenizer(TEXTS).ids
    assert encoder.layout is Layout.PACKED
    assert_exact(folder_of("xlm-roberta"), encoder)


@pytest.mark.parametrize(("name", "limit"), [("gpt2", 32), ("biogpt", 32), ("xlm", 32), ("clip_text_model", 77)])
def test_the_limit_is_read_from_the_table_of_positions(folder_of: Callable[[str], str], name: str, limit: int) -> None:
    encoder = load(folder_of(name))
    assert encoder.position_limit == encoder.tokenizer.max_length == limit
    assert_exact(folder_of(name), encoder)
    with pytest.raises(ConfigError, match=rf"model.max_length=99 .* for {limit} tokens; type model.max_length={limit}"):
        load(folder_of(name), max_length=99)


def test_a_limit_that_is_in_no_table_is_tried(folder_of: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    observe = trials.observe
    monkeypatch.setattr(
        "angle.modeling.encoder.observe", lambda *args: trials.Observation(observe(*args).is_causal, None)
    )
    with pytest.raises(ConfigError) as caught:
        load(folder_of("gpt2"), max_length=99)
    assert str(caught.value) == (
        "model.max_length=99 cannot work: GPT2Model fails on a text of 33 tokens (IndexError: index out of range in "
        "self); type model.max_length=32."
    )


def test_direction_is_measured(folder_of: Callable[[str], str]) -> None:
    causal = Encoder.load(ModelConfig(folder_of("causal_bert")))
    assert (causal.is_llm, causal.pooling) == (True, "avg")
    assert_exact(folder_of("causal_bert"), causal.eval())
    with pytest.raises(ConfigError, match=r"^pooling.strategy=cls cannot work with BertModel: in a decoder the first"):
        load(folder_of("causal_bert"), "cls")
    for name in ("xlnet", "bert-generation"):
        bidirectional = Encoder.load(ModelConfig(folder_of(name)))
        assert (bidirectional.is_llm, bidirectional.pooling) == (False, "cls")
        assert_exact(folder_of(name), load(folder_of(name)))


def test_a_model_that_runs_no_texts_is_refused(folder_of: Callable[[str], str]) -> None:
    with pytest.raises(ConfigError, match=r"^model.name_or_path=.* cannot work: PerceiverModel fails on a short text"):
        load(folder_of("perceiver"))


def test_a_model_without_attention_is_refused(folder_of: Callable[[str], str]) -> None:
    """Without its CUDA kernel, transformers' MRA takes zeros for what attention gives, and says nothing."""
    with pytest.raises(ConfigError, match=r"cannot work: MraModel gives every token a state that no other token chang"):
        load(folder_of("mra"))


def test_tokens_of_one_embedding_are_no_reason_to_refuse_a_model() -> None:
    """A vocabulary has tokens that no text has, often next to each other, whose embeddings were never trained."""
    model = AutoModel.from_config(AutoConfig.for_model("llama", vocab_size=1000, **SMALL | DECODER)).eval()
    weight = model.get_input_embeddings().weight
    assert len({*trials.plain_tokens(model, 9)}) == 9
    with torch.no_grad():
        weight[:100] = weight[0]
    assert trials.observe(model, "model").is_causal is True
    first, *_, last, _ = trials.plain_tokens(model, 9)
    with torch.no_grad():  # a changed first token changes nothing, not even its own state
        weight[:last] = weight[first:] = weight[0]
    assert trials.observe(model, "model").is_causal is None


def test_a_trial_that_takes_long_is_announced(
    folder_of: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of("fnet")
    capsys.readouterr()  # of saving it
    load(folder, max_length=24)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(trials, "SILENT_SECONDS", 0)
    load(folder, max_length=24)
    assert capsys.readouterr().err == (
        "note    trying FNetModel on texts of 24 tokens may take minutes; a lower\n"
        "        model.max_length takes less\n"
    )


def test_rounding_is_no_change() -> None:
    """Of experts, which round otherwise for other tokens: their decoder would be taken for an encoder."""
    for width in (32, 384):
        states = torch.randn(3000, 8, width, generator=torch.Generator().manual_seed(0))
        for dtype, rounding, change in ((torch.float32, 1e-6, 1e-4), (torch.bfloat16, 1e-5, 1e-2)):
            assert not differ((states * (1 + rounding)).to(dtype), states.to(dtype))
            changed = states.clone()
            changed[1, 5] *= 1 + change
            assert differ(changed.to(dtype), states.to(dtype))


def test_states_in_groups_are_no_table_of_positions(tmp_path: Path) -> None:
    """Qwen 4 looks up the keys of 8 tokens in groups of 4: it has positions for more than these."""
    build("qwen4_exp_text", tmp_path)
    assert trials.observe(AutoModel.from_pretrained(tmp_path), "qwen").position_limit is None


def test_what_only_padding_breaks_is_not_converted(folder_of: Callable[[str], str], tmp_path: Path) -> None:
    """It pads; a model that packs and is exact when padded is converted."""
    encoder = load(folder_of("fnet"))
    with pytest.raises(ConfigError, match=r"^FNetModel has no equivalent in sentence-transformers, whose padding"):
        save_sentence_transformers(encoder, tmp_path / "fnet")
    assert not (tmp_path / "fnet").exists()
    encoder.save(tmp_path / "saved")
    (tmp_path / "staged").mkdir()
    assert stage_files(tmp_path / "saved", tmp_path / "staged", "user/fnet", "tiny").sentence_transformers is (
        SentenceTransformersSupport.CONVERTED
    )
    assert not (tmp_path / "staged" / "modules.json").exists()
    save_sentence_transformers(load(folder_of("gpt2")), tmp_path / "gpt2")


def test_a_run_says_how_its_texts_run(folder_of: Callable[[str], str], tmp_path: Path) -> None:
    words = [f"model.name_or_path={folder_of('fnet')}", *sample_files(tmp_path), "train.max_steps=1"]
    done = start("train.py", *words, "train.output_dir=run", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    printed = " ".join(done.stdout.split())
    assert "texts one length at a time, for padding changes their embeddings in this architecture" in printed
    assert json.loads((tmp_path / "run" / "run.json").read_text())["layout"] == "one length at a time"
    refused = start(
        "train.py", f"model.name_or_path={folder_of('dynamic')}", *words[1:], "train.output_dir=other", folder=tmp_path
    )
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    assert "type model.max_length=16." in refused.stderr
    assert not (tmp_path / "other").exists()


def test_a_token_whose_state_is_zero_is_no_difference(folder_of: Callable[[str], str]) -> None:
    """As that of a token that pads is, where nothing but single tokens is mixed in."""
    encoder, states = load(folder_of("fnet")), torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    lengths = np.array([2])
    assert trials.states_agree(encoder.backbone, states.clone(), states, lengths)
    assert not trials.states_agree(encoder.backbone, states + torch.tensor([[1e-3, 0.0], [0.0, 0.0]]), states, lengths)
    assert not trials.states_agree(encoder.backbone, states * torch.nan, states, lengths)


def test_what_is_tried_is_the_model_that_will_run(
    folder_of: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    trial = trials.LayoutTrial.__init__

    def watched(self: Any, backbone: Any, *args: Any) -> None:
        seen.append(backbone.config.num_hidden_layers)
        trial(self, backbone, *args)

    monkeypatch.setattr(trials.LayoutTrial, "__init__", watched)
    load(folder_of("fnet"), layers=1)
    assert seen == [1]


def test_a_mask_that_the_model_makes_itself_is_not_left_out(folder_of: Callable[[str], str]) -> None:
    """Doge adds what it learns to its mask; at first that is the same for all tokens, and changes nothing."""
    assert load(folder_of("doge")).layout is Layout.PADDED
