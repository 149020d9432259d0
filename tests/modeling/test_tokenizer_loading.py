"""Tokenizers as they are loaded: by the settings given, else by those saved with the model."""

from pathlib import Path

import pytest
from conftest import decoder_tokenizer

from angle.config import ModelConfig
from angle.errors import ConfigError
from angle.modeling.embedding_config import EmbeddingConfig
from angle.modeling.tiny import tiny_model
from angle.modeling.tokenizer_loading import load_tokenizer


@pytest.mark.parametrize(
    ("pooling", "prompt", "embedding_config", "end"),
    [
        ("last", None, EmbeddingConfig(), True),
        ("last", "query: {text}", EmbeddingConfig(), True),
        ("last", 'the "{text}" in one word:"', EmbeddingConfig(), False),
        ("avg", None, EmbeddingConfig(), False),
        ("last", None, EmbeddingConfig(pooling="last"), False),
        ("last", None, EmbeddingConfig(pooling="last", special_tokens=(("<s>",), ())), False),
    ],
)
def test_last_token_pooling_adds_an_end_token(
    pooling: str, prompt: str | None, embedding_config: EmbeddingConfig, end: bool, tmp_path: Path
) -> None:
    decoder_tokenizer(start=True).save_pretrained(tmp_path)
    config = ModelConfig(str(tmp_path), prompt=prompt)
    wrapped = load_tokenizer(config, str(tmp_path), embedding_config, pooling, tiny_model())
    assert wrapped.special_tokens == (("<s>",), ("</s>",) if end else ())
    assert wrapped.tokenizer.padding_side == ("left" if pooling == "last" else "right")


def test_padding_with_the_end_token_is_on_the_left(tmp_path: Path) -> None:
    decoder_tokenizer(start=True).save_pretrained(tmp_path)
    with pytest.raises(ConfigError) as error:
        load_tokenizer(
            ModelConfig(str(tmp_path), padding_side="right"), str(tmp_path), EmbeddingConfig(), "last", tiny_model()
        )
    assert str(error.value) == (
        "model.padding_side=right cannot work with pooling.strategy=last: </s> both pads and ends texts, so other "
        "software would take the end of a text for padding; type model.padding_side=left."
    )


def test_other_special_tokens_than_in_training_are_refused(tmp_path: Path) -> None:
    decoder_tokenizer(start=True).save_pretrained(tmp_path)
    embedding_config = EmbeddingConfig(pooling="last", special_tokens=(("<s>",), ("</s>",)))
    with pytest.raises(ConfigError) as error:
        load_tokenizer(ModelConfig(str(tmp_path)), str(tmp_path), embedding_config, "last", tiny_model())
    assert str(error.value) == (
        f"{tmp_path} was trained on texts <s> ... </s>, but its tokenizer now writes <s> ...: give the right one by "
        f"model.tokenizer_name_or_path=..."
    )
