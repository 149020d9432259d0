"""Tokenizers as they are loaded: by the settings given, else by those saved with the model."""

from pathlib import Path
from typing import Any

import pytest
from conftest import decoder_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertTokenizer, PreTrainedTokenizerFast

from angle.config import ModelConfig
from angle.errors import ConfigError
from angle.modeling.embedding_config import EmbeddingConfig
from angle.modeling.special_tokens import special_tokens_around
from angle.modeling.tiny import tiny_model
from angle.modeling.tokenizer import TextTokenizer
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


def test_without_an_end_token_any_side_may_pad(tmp_path: Path) -> None:
    decoder_tokenizer(start=True).save_pretrained(tmp_path)
    config = ModelConfig(str(tmp_path), padding_side="right", end_token=False)
    wrapped = load_tokenizer(config, str(tmp_path), EmbeddingConfig(), "last", tiny_model())
    assert (wrapped.special_tokens, wrapped.tokenizer.padding_side) == ((("<s>",), ()), "right")


@pytest.mark.parametrize("end_token", [None, False])
def test_other_special_tokens_than_in_training_are_refused(end_token: bool | None, tmp_path: Path) -> None:
    decoder_tokenizer(start=True).save_pretrained(tmp_path)
    embedding_config = EmbeddingConfig(pooling="last", special_tokens=(("<s>",), ("</s>",)))
    config = ModelConfig(str(tmp_path), end_token=end_token)
    with pytest.raises(ConfigError) as error:
        load_tokenizer(config, str(tmp_path), embedding_config, "last", tiny_model())
    assert str(error.value) == (
        f"{tmp_path} was trained on texts <s> ... </s>, but its tokenizer now writes <s> ...: give the right one by "
        f"model.tokenizer_name_or_path=..."
    )


def word_level(*words: str, unknown: str | None = None, start: str | None = None) -> Any:
    """Return a tokenizer of whole words, without one for all others unless it is given."""
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unknown))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    if start is not None:
        backend.post_processor = processors.TemplateProcessing(f"{start} $A", None, [(start, words.index(start))])
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=words[0], unk_token=unknown, bos_token=start)


@pytest.mark.parametrize("words", ["ACGT", "\u732b\u72d7"])
def test_what_is_around_a_text_is_seen_with_words_of_the_vocabulary(words: str) -> None:
    assert special_tokens_around(word_level("<pad>", "<s>", *words, start="<s>")) == (("<s>",), ())


def test_a_vocabulary_without_words_is_refused() -> None:
    for tokenizer in (BertTokenizer(), word_level("<pad>", "<unk>", unknown="<unk>")):
        with pytest.raises(ConfigError, match=r"Tokenizer\w* has a vocabulary of \d tokens, with none of which a"):
            special_tokens_around(tokenizer)


@pytest.mark.parametrize("prompt", [None, "ac{text}", "{text}xx"])
def test_the_fraction_of_unknown_tokens_leaves_out_what_is_around_a_text(prompt: str | None) -> None:
    tokenizer = TextTokenizer(word_level("<pad>", "<unk>", "<s>", *"acgt", unknown="<unk>", start="<s>"), 9, prompt)
    assert tokenizer.unknown_fraction(tokenizer(["acx", "x"])) == 0.5
    assert tokenizer.unknown_fraction(tokenizer([])) == 0


def test_a_tokenizer_whose_unknown_token_is_another_one_knows_all() -> None:
    tokenizer = TextTokenizer(word_level("<s>", *"acgt", unknown="<s>"), 9)
    assert tokenizer.unknown_fraction(tokenizer(["xxx"])) == 0
