"""Token types that a tokenizer sets reach the models that use them, and no others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SMALL, sample_files, start
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

from angle import ConfigError, Encoder, ModelConfig, PoolingConfig
from angle.export.sentence_transformers import save_sentence_transformers
from angle.modeling.packing import Layout
from angle.modeling.tiny import tiny_tokenizer
from angle.modeling.token_types import TokenTypes

SENTENCE = "a dog chases the cat and two birds watch the old man who eats an apple in the garden"
TEXTS = [" ".join(SENTENCE.split()[first : first + count]) for first, count in ((0, 1), (1, 9), (3, 4), (2, 12))]
SETTINGS: dict[str, dict[str, Any]] = {
    "xlnet": {"d_model": 32, "n_head": 4, "n_layer": 2, "d_inner": 48, "initializer_range": 0.2},
    "bert": SMALL | {"type_vocab_size": 2},
    "llama": SMALL,
    "gpt2": SMALL | {"n_embd": 32, "n_head": 4},
}  # fmt: skip


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a model, and a tokenizer with a template such as "[CLS]:2 $A:0 [SEP]:0"."""

    def write(name: str, template: str) -> Path:
        torch.manual_seed(1)
        backend, names = tiny_tokenizer().backend_tokenizer, ["input_ids", "token_type_ids", "attention_mask"]
        special = [(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
        backend.post_processor = TemplateProcessing(single=template, special_tokens=special)
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend, model_input_names=names, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
        )
        config = AutoConfig.for_model(name, vocab_size=len(tokenizer), **SETTINGS[name])
        AutoModel.from_config(config).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        return tmp_path / name

    return write


def load(folder: Path) -> Encoder:
    return Encoder.load(ModelConfig(str(folder), max_length=32), PoolingConfig("avg")).eval()


def by_transformers(folder: Path, encoder: Encoder, *names: str) -> Tensor:
    """Return the mean states of texts, each run alone with what transformers' tokenizer returns under these names."""
    model, rows = AutoModel.from_pretrained(folder).eval(), []
    for text in TEXTS:
        inputs = encoder.tokenizer.tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            rows.append(model(**{name: inputs[name] for name in names}).last_hidden_state[0].mean(0))
    return torch.stack(rows)


@pytest.mark.parametrize(
    ("name", "template", "layout"),
    [
        ("xlnet", "$A:0 [SEP]:0 [CLS]:2", Layout.PADDED),
        ("bert", "[CLS]:0 $A:1 [SEP]:1", Layout.PACKED),
    ],
)
def test_types_reach_a_model_that_uses_them(
    name: str, template: str, layout: Layout, make: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make(name, template)
    encoder = load(folder)
    assert encoder.layout is layout
    expected = by_transformers(folder, encoder, "input_ids", "token_type_ids")
    without = by_transformers(folder, encoder, "input_ids")
    assert (expected - without).abs().max() > 1e-3 * expected.abs().max()
    alone = torch.cat([encoder.encode([text]) for text in TEXTS])
    encoder.save(tmp_path / "saved")
    for actual in (alone, encoder.encode(TEXTS), load(tmp_path / "saved").encode(TEXTS)):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    save_sentence_transformers(encoder, tmp_path / "converted")
    from sentence_transformers import SentenceTransformer

    converted = SentenceTransformer(str(tmp_path / "converted"), device="cpu").encode(TEXTS, convert_to_tensor=True)
    torch.testing.assert_close(converted, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize(
    ("name", "template"),
    [("llama", "[CLS]:2 $A:0"), ("gpt2", "$A:0 [SEP]:0")],  # takes no types; all types are zero, as if there were none
)
def test_a_model_without_types_gets_none(name: str, template: str, make: Callable[..., Path]) -> None:
    folder = make(name, template)
    encoder = load(folder)
    expected = by_transformers(folder, encoder, "input_ids")
    torch.testing.assert_close(encoder.encode(TEXTS), expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_types_that_the_model_does_not_have_are_refused(make: Callable[..., Path], tmp_path: Path) -> None:
    folder, message = (
        make("bert", "[CLS]:2 $A:0 [SEP]:0"),
        (
            "The tokenizer gives tokens the types 0, 2, with which BertModel fails: give another one by "
            "model.tokenizer_name_or_path=..."
        ),
    )
    with pytest.raises(ConfigError) as error:
        load(folder)
    assert str(error.value) == message


@pytest.mark.slow
def test_a_run_with_token_types(make: Callable[..., Path], tmp_path: Path) -> None:
    folder = make("xlnet", "$A:0 [SEP]:0 [CLS]:2")
    words = [f"model.name_or_path={folder}", "model.max_length=32", *sample_files(tmp_path), "train.max_steps=2"]
    done = start("train.py", *words, "train.output_dir=run", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    done = start("train.py", f"model.name_or_path={make('bert', '[CLS]:2 $A:0')}", *words[1:], folder=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "types 0, 2" in done.stderr


def test_types_of_texts_of_several_lengths() -> None:
    types = TokenTypes((2, 3), 1, (4,)).of_texts(np.array([5, 3, 1]), torch.device("cpu"))
    assert types.tolist() == [2, 3, 1, 1, 4, 2, 3, 4, 4]
