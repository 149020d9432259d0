"""Tokenizers as they are loaded: following the settings, else the model's contract."""

from pathlib import Path

import pytest
from conftest import decoder_tokenizer

from angle.config import ModelConfig
from angle.errors import ConfigError
from angle.modeling.contract import EncoderContract
from angle.modeling.tiny import tiny_model
from angle.modeling.tokenizer_loading import load_tokenizer


@pytest.mark.parametrize(
    ("pooling", "prompt", "contract", "end"),
    [
        ("last", None, EncoderContract(), True),
        ("last", "query: {text}", EncoderContract(), True),
        ("last", 'the "{text}" in one word:"', EncoderContract(), False),
        ("avg", None, EncoderContract(), False),
        ("last", None, EncoderContract(pooling="last"), False),
        ("last", None, EncoderContract(pooling="last", special_tokens=(("<s>",), ())), False),
    ],
)
def test_last_token_pooling_needs_an_end(
    pooling: str, prompt: str | None, contract: EncoderContract, end: bool, tmp_path: Path
) -> None:
    decoder_tokenizer(start=True).save_pretrained(tmp_path)
    config = ModelConfig(str(tmp_path), prompt=prompt)
    wrapped = load_tokenizer(config, str(tmp_path), contract, pooling, tiny_model())
    assert wrapped.special_tokens == (("<s>",), ("</s>",) if end else ())
    assert wrapped.tokenizer.padding_side == ("left" if pooling == "last" else "right")


def test_padding_that_looks_like_an_end(tmp_path: Path) -> None:
    decoder_tokenizer(start=True).save_pretrained(tmp_path)
    with pytest.raises(ConfigError) as error:
        load_tokenizer(
            ModelConfig(str(tmp_path), padding_side="right"), str(tmp_path), EncoderContract(), "last", tiny_model()
        )
    assert str(error.value) == (
        "model.padding_side=right cannot work with pooling.strategy=last: </s> both pads and ends texts, so other "
        "software would take the end of a text for padding; type model.padding_side=left."
    )


def test_a_tokenizer_that_writes_texts_otherwise_than_the_model_was_trained(tmp_path: Path) -> None:
    decoder_tokenizer(start=True).save_pretrained(tmp_path)
    contract = EncoderContract(pooling="last", special_tokens=(("<s>",), ("</s>",)))
    with pytest.raises(ConfigError) as error:
        load_tokenizer(ModelConfig(str(tmp_path)), str(tmp_path), contract, "last", tiny_model())
    assert str(error.value) == (
        f"{tmp_path} was trained on texts <s> ... </s>, but its tokenizer now writes <s> ...: give the right one by "
        f"model.tokenizer_name_or_path=..."
    )
