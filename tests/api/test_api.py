"""The Python face: angle_emb's own example, encoding, names that are wrong, and the folders it leaves."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import peft
import pytest
import torch
from conftest import decoder_tokenizer, snapshot
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from angle import AnglE, AngleDataTokenizer, ConfigError, DataError, DatasetFormats, Encoder, ModelConfig, Prompts
from angle.config import EvaluateConfig, TrainConfig
from angle.config.build import build_config, load_config
from angle.data import sample
from angle.evaluation.report import evaluate

TEXTS = ["a dog chases the cat", "two birds", "the woman eats an apple in the garden"]
LOSS = {"cosine_w": 1.0, "ibn_w": 20.0, "angle_w": 1.0, "cosine_tau": 20, "ibn_tau": 20, "angle_tau": 20}


def rows(split: str, count: int, name: str = "A") -> datasets.Dataset:
    return datasets.Dataset.from_dict(sample.columns(name, split, count))


@pytest.fixture(scope="module")
def angle() -> AnglE:
    return AnglE.from_pretrained("tiny")


def test_angle_emb_example(tmp_path: Path) -> None:
    """Load, prepare, train, evaluate, as its documentation shows it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no CUDA here
        angle = AnglE.from_pretrained("tiny", max_length=48, pooling_strategy="avg").cuda()
    ds = {"train": rows("train", 640), "validation": rows("validation", 40), "test": rows("test", 60)}
    train_ds = ds["train"].shuffle(seed=1).map(AngleDataTokenizer(angle.tokenizer, angle.max_length), num_proc=2)
    valid_ds = ds["validation"].map(AngleDataTokenizer(angle.tokenizer, angle.max_length), num_proc=2)
    test_ds = ds["test"].map(AngleDataTokenizer(angle.tokenizer, angle.max_length), num_proc=2)

    before, _ = angle.evaluate(test_ds, device=angle.device)
    angle.fit(
        train_ds=train_ds,
        valid_ds=valid_ds,
        output_dir=str(tmp_path / "run"),
        batch_size=32,
        epochs=3,
        learning_rate=2e-3,
        save_steps=100,
        eval_steps=1000,
        warmup_steps=0,
        gradient_accumulation_steps=1,
        loss_kwargs=LOSS,
        fp16=False,
        logging_steps=100,
    )
    corrcoef, accuracy = angle.evaluate(test_ds, device=angle.device)

    assert corrcoef > before + 0.1
    test_ds.to_json(tmp_path / "test.jsonl")
    settings = {
        "model": {"name_or_path": str(tmp_path / "run")},
        "tasks": [str(tmp_path / "test.jsonl")],
        "output_dir": str(tmp_path / "scores"),
    }
    (metrics,) = evaluate(build_config(settings, EvaluateConfig)).results.values()
    assert (corrcoef, accuracy) == (metrics["spearman_cosine"], metrics["accuracy"])
    assert angle.evaluate(test_ds, metric="pearson_dot") == metrics["pearson_dot"]
    config = load_config(tmp_path / "run" / "config.yaml")
    assert (config.train.warmup_steps, config.train.eval_steps, config.train.save_total_limit) == (0.0, 1000, 1)
    assert (config.pooling.strategy, config.model.max_length) == ("avg", 48)
    assert config.loss.ibn_w == 20.0
    np.testing.assert_array_equal(angle.encode(TEXTS), Encoder.load(ModelConfig(str(tmp_path / "run"))).encode(TEXTS))


def test_fit_has_the_defaults_of_angle_emb(tmp_path: Path) -> None:
    angle = AnglE("tiny")
    angle.fit(rows("train", 20, "C"), output_dir=str(tmp_path / "run"), config={"train": {"max_steps": 1, "seed": 7}})
    config = load_config(tmp_path / "run" / "config.yaml")
    assert (config.train.learning_rate, config.train.warmup_steps, config.train.batch_size) == (1e-5, 1000.0, 32)
    assert (config.train.logging_steps, config.train.save_steps, config.train.seed) == (10, 100, 7)
    assert config.data.duplicates == "mask"


def test_fit_sets_its_result(tmp_path: Path) -> None:
    angle = AnglE.from_pretrained("tiny")
    assert angle.result is None
    angle.fit("sample", output_dir=str(tmp_path / "run"), config={"train": {"max_steps": 1}})
    assert angle.result is not None
    assert angle.result.folder == tmp_path / "run"
    assert angle.result.best_score == json.loads((tmp_path / "run" / "run.json").read_text())["result"]["best_score"]


def test_a_second_fit_starts_from_the_first(tmp_path: Path) -> None:
    angle = AnglE("tiny")
    config = {"train": {"max_steps": 2, "learning_rate": 1e-3}}
    angle.fit(rows("train", 40), output_dir=str(tmp_path / "one"), warmup_steps=0, config=config)
    first = angle.encode(TEXTS)
    angle.fit(rows("train", 40), output_dir=str(tmp_path / "two"), warmup_steps=0, config=config)
    assert load_config(tmp_path / "two" / "config.yaml").model.name_or_path == str(tmp_path / "one")
    assert np.abs(angle.encode(TEXTS) - first).max() > 1e-4


def test_espresso_a_teacher_and_fewer_layers(folder_of: Callable[[str], str], tmp_path: Path) -> None:
    angle = AnglE(folder_of("bert"), pooling_strategy="avg").truncate_layer(2)
    angle.fit(
        rows("train", 20),
        output_dir=str(tmp_path / "run"),
        apply_ese=True,
        trainer_kwargs={"ese_compression_size": 8, "teacher_name_or_path": folder_of("bert"), "apply_ese_pca": False},
        argument_kwargs={"max_steps": 2, "weight_decay": 0.01},
        filter_duplicate=False,
        save_strategy="no",
    )
    config = load_config(tmp_path / "run" / "config.yaml")
    assert (config.model.layers, config.ese.compression_size, config.ese.pca) == (2, 8, False)
    assert (config.teacher.name_or_path, config.teacher.pooling) == (folder_of("bert"), "auto")
    assert (config.train.weight_decay, config.train.save_steps, config.data.duplicates) == (0.01, 0, "keep")
    assert len(angle.backbone.encoder.layer) == 2
    assert angle.encode(TEXTS, layer_index=1, embedding_size=8).shape == (3, 8)


def test_a_decoder_gets_an_adapter(folder_of: Callable[[str], str], tmp_path: Path) -> None:
    angle = AnglE(folder_of("llama"), lora_config_kwargs={"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM"})
    assert (angle.is_llm, angle.pooling_strategy) == (True, "avg")
    angle.fit(rows("train", 20, "B"), output_dir=str(tmp_path / "run"), config={"train": {"max_steps": 1}})
    config = load_config(tmp_path / "run" / "config.yaml")
    assert (config.lora.enabled, config.lora.r, config.lora.alpha) == (True, 4, 8)
    assert (tmp_path / "run" / "final" / "adapter_config.json").is_file()
    angle.save_pretrained(str(tmp_path / "saved"))
    assert (tmp_path / "saved" / "adapter_config.json").is_file()
    assert angle.encode("a dog").shape == (1, 32)


def test_encode_is_the_encoder_s_in_every_shape(angle: AnglE) -> None:
    encoder = Encoder.load("tiny").eval()
    expected = encoder.encode(TEXTS)
    np.testing.assert_array_equal(angle.encode(TEXTS), expected)
    assert angle.encode(TEXTS[0]).shape == (1, expected.shape[1])
    assert isinstance(angle.encode(TEXTS, to_numpy=False), torch.Tensor)
    np.testing.assert_array_equal(angle.encode(TEXTS, embedding_start=3, embedding_size=10), expected[:, 3:13])
    norms = np.linalg.norm(angle.encode(TEXTS, normalize_embedding=True, embedding_size=10), axis=1)
    np.testing.assert_allclose(norms, 1, rtol=1e-6)
    depth = encoder.encode_tokens(encoder.tokenizer(TEXTS), depths=[1])[:, 0]
    np.testing.assert_array_equal(angle.encode(TEXTS, layer_index=1), depth)
    given = list(TEXTS)
    angle.encode(given, prompt=Prompts.C)
    assert given == TEXTS
    np.testing.assert_allclose(angle.encode(iter(TEXTS), batch_size=1), expected, atol=1e-6)


def test_encode_in_chunks(angle: AnglE, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = angle.encode(TEXTS)
    monkeypatch.setattr("angle.modeling.encoder.ENCODE_CHUNK_SIZE", 2)
    np.testing.assert_allclose(angle.encode(TEXTS), expected, atol=1e-6)


def test_encode_with_a_prompt(angle: AnglE) -> None:
    written = angle.encode([Prompts.C.format(text=text) for text in TEXTS])
    for prompt in ("C", Prompts.C):
        np.testing.assert_array_equal(angle.encode(TEXTS, prompt=prompt), written)
        np.testing.assert_array_equal(angle.encode([{"text": text} for text in TEXTS], prompt=prompt), written)
    with_column = angle.encode([{"text": "cat", "kind": "dog"}], prompt="{kind}: {text}")
    np.testing.assert_array_equal(with_column, angle.encode(["dog: cat"]))


def test_encode_in_a_role(angle: AnglE) -> None:
    asymmetric = AnglE(
        "tiny", max_length=64, prompt_template="any: {text}", prompts={"query": "fox: ", "text2": "owl "}
    )
    for role, template in {"query": "fox: {}", "text": "fox: {}", "document": "any: {}", "text2": "owl {}"}.items():
        expected = angle.encode([template.format(text) for text in TEXTS], max_length=64)
        np.testing.assert_array_equal(asymmetric.encode(TEXTS, role=role), expected)
    expected = angle.encode([f"fox: {text}" for text in TEXTS], max_length=8)
    np.testing.assert_array_equal(asymmetric.encode(TEXTS, role="query", max_length=8), expected)
    for options, message in (
        ({"role": "querry"}, "role='querry' is not known; did you mean query? Choose query, document, positive, "
         "negative, text1, text2."),
        ({"role": "query", "prompt": "C"}, "prompt='C' and role='query' both choose the template: give one of them."),
    ):  # fmt: skip
        with pytest.raises(ConfigError) as error:
            asymmetric.encode(TEXTS, **options)
        assert str(error.value) == message


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a small decoder with its head, and an adapter made on it by peft, as angle_emb does."""
    folder = tmp_path_factory.mktemp("decoder")
    torch.manual_seed(0)
    tokenizer = decoder_tokenizer(start=True)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        initializer_range=0.3,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    lora = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    peft.get_peft_model(model, lora).save_pretrained(folder / "adapter")
    return folder


@pytest.mark.parametrize(
    ("options", "written"),
    [
        ({}, "<s> {text}"),
        ({"prompt": "the {text} in one word"}, "<s> the {text} in one word"),
        ({"prompt": "query : {text}"}, "<s> query : {text}"),
        ({"prompt": "query : {text}", "end_with_eos": True}, "<s> query : {text} </s>"),
        ({"end_with_eos": True, "max_length": 3}, "<s> {first} </s>"),
        ({"end_with_eos": False}, "<s> {text}"),
    ],
)
def test_last_tokens_are_those_of_angle_emb(options: dict[str, Any], written: str, decoder: Path) -> None:
    base, adapter = decoder / "base", decoder / "adapter"
    angle = AnglE.from_pretrained(str(base), pretrained_lora_path=str(adapter), pooling_strategy="last", is_llm=True)
    model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
    for text in ("red moon", "the owl sleep under the moon"):
        words = written.format(text=text, first=text.split()[0]).split()
        ids = torch.tensor([angle.tokenizer.convert_tokens_to_ids(words)])
        with torch.no_grad():
            expected = model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0, -1]
        np.testing.assert_allclose(angle.encode([text, "a"], **options)[0], expected, atol=1e-5)


@pytest.mark.slow
def test_an_end_token_is_trained_on_when_it_is_asked_for(decoder: Path, tmp_path: Path) -> None:
    words = ["a fox", "the owl", "red moon", "green word", "under the moon", "a word", "one colour", "the fox sleep"]
    triples = datasets.Dataset.from_list(
        [{"text": words[n], "positive": words[n - 1], "negative": words[n - 3]} for n in range(8)]
    )
    for end_with_eos in (False, True):
        angle = AnglE(str(decoder / "base"), pooling_strategy="last", max_length=16)
        prepare = AngleDataTokenizer(angle.tokenizer, 16, end_with_eos=end_with_eos)
        folder = tmp_path / str(end_with_eos)
        angle.fit(triples.map(prepare), batch_size=4, output_dir=str(folder), argument_kwargs={"max_steps": 1})
        end = ["</s>"] if end_with_eos else []
        assert json.loads((folder / "final" / "angle_config.json").read_text())["special_tokens"] == [["<s>"], end]
        without_end = angle.encode(words, end_with_eos=False)  # also of the end token that training appended
        assert (np.abs(angle.encode(words) - without_end).max() > 0.01) == end_with_eos
        np.testing.assert_array_equal(AnglE(str(folder)).encode(words), angle.encode(words))
        expected = without_end if not end_with_eos else angle.encode(words, end_with_eos=True)
        np.testing.assert_array_equal(angle.encode(words), expected)


def test_evaluate_matches_reference(angle: AnglE) -> None:
    pairs = rows("test", 30)
    left, right = (torch.from_numpy(angle.encode(pairs[name])).double() for name in ("text1", "text2"))
    cosine = torch.cosine_similarity(left, right).numpy()
    positive = np.array(pairs["label"]) > 0.5
    _, accuracy = angle.evaluate(pairs, threshold=0.9)
    assert accuracy == np.mean((cosine > 0.9) == positive)
    assert angle.metrics(pairs)["accuracy"] >= accuracy
    with pytest.raises(ConfigError, match=r"^metric=spearman is not known. Choose one of: spearman_cosine, "):
        angle.evaluate(pairs, metric="spearman")


def test_evaluate_accepts_every_kind_of_data(tmp_path: Path) -> None:
    pairs = rows("test", 30)
    pairs.to_json(tmp_path / "pairs.jsonl")
    angle = AnglE.from_pretrained("tiny")
    expected = angle.metrics(pairs)
    assert angle.metrics(pairs.to_list()) == expected
    assert angle.metrics(str(tmp_path / "pairs.jsonl")) == expected


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (datasets.DatasetDict({"a": rows("test", 4)}), "data has the splits a: choose one, such as data=ds['train']."),
        (3, "data must be a data set, rows such as [{'text1': ...}], a file or a name on the hub."),
        (
            [{"text1": "a", "text2": "b", "label": 1}, {"text1": "a", "text2": "b", "label": "x"}],
            "data has a column with cells of several types: Could not convert 'x' with type str: tried to convert to "
            "int64.",
        ),
        (
            rows("test", 4).to_iterable_dataset(),
            "data is a stream: give its name or its files, with config={'data': {'streaming': True}}.",
        ),
    ],
)
def test_data_without_rows_are_refused(angle: AnglE, data: Any, message: str) -> None:
    with pytest.raises(DataError) as caught:
        angle.metrics(data)
    assert str(caught.value) == message


def test_prepared_rows_say_how_they_are_read(tmp_path: Path) -> None:
    angle = AnglE("tiny", max_length=32)
    prepare = AngleDataTokenizer(angle.tokenizer, 32, prompt_template="Query: {text}")
    row = dict(zip(sample.columns("B", "train", 1), ["a", "b", "c"], strict=True))
    assert prepare(row) == {
        "extra": {"dataset_format": "B", "prompt": "Query: {text}", "max_length": 32, "end_token": None}
    }
    angle.fit(rows("train", 20).map(prepare), output_dir=str(tmp_path / "run"), config={"train": {"max_steps": 1}})
    assert load_config(tmp_path / "run" / "config.yaml").model.prompt == "Query: {text}"
    with pytest.raises(ConfigError) as caught:
        AnglE("tiny", max_length=64).fit(rows("train", 20).map(prepare))
    assert str(caught.value) == (
        "train_ds was prepared for max_length=32, but the model reads 64 tokens: give both the same, by "
        "AnglE.from_pretrained(..., max_length=32)."
    )


def test_differently_prepared_rows_are_refused(tmp_path: Path) -> None:
    angle = AnglE("tiny")
    ask, find = (AngleDataTokenizer(angle.tokenizer, prompt_template=f"{word}: {{text}}") for word in ("Ask", "Find"))
    pairs = rows("test", 30)
    written = pairs.map(lambda row: {name: f"Ask: {row[name]}" for name in ("text1", "text2")})
    assert angle.metrics(pairs.map(ask)) == angle.metrics(written) != angle.metrics(pairs)
    with pytest.raises(ConfigError) as caught:
        angle.fit(rows("train", 20).map(ask), valid_ds=pairs.map(find), output_dir=str(tmp_path / "run"))
    assert str(caught.value) == (
        "valid_ds was prepared with 'Find: {text}', but train_ds with 'Ask: {text}': prepare both by the same "
        "AngleDataTokenizer."
    )
    as_c = AngleDataTokenizer(angle.tokenizer, dataset_format="C")
    angle.fit(rows("train", 20, "B").map(as_c), output_dir=str(tmp_path / "run"), config={"train": {"max_steps": 1}})
    assert load_config(tmp_path / "run" / "config.yaml").data_format.name == "C"


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        ({"dataset_format": "D"}, ConfigError, "dataset_format=D is not known. Choose one of: A, B, C."),
        (
            {"prompt_template": "x: {text}", "extra_columns": ["kind"]},
            ConfigError,
            "extra_columns has 'kind', which the template 'x: {text}' does not use.",
        ),
        (
            {"end_with_eos": True},
            ConfigError,
            "end_with_eos=True cannot work: the tokenizer has no end token; leave it out.",
        ),
    ],
)
def test_preparing_with_wrong_arguments(
    angle: AnglE, settings: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind) as caught:
        AngleDataTokenizer(angle.tokenizer, **settings)
    assert str(caught.value) == message


def test_rows_of_a_later_release_can_be_prepared(angle: AnglE) -> None:
    prepare = AngleDataTokenizer(angle.tokenizer, fix_data=True, template_placeholders=["text"])
    assert prepare({"query": "a", "positive": "b", "negative": "c"})["extra"]["dataset_format"] == "B"


def test_rows_that_match_no_format_are_refused(angle: AnglE) -> None:
    with pytest.raises(DataError, match="which match no format"):
        AngleDataTokenizer(angle.tokenizer)({"sentence1": "a", "score": 1.0})
    with pytest.raises(
        DataError, match=r"^The template uses \{kind\}, but the data set has the columns text1, text2, "
    ):
        AngleDataTokenizer(angle.tokenizer, prompt_template="{kind}: {text}")({"text1": "", "text2": "", "label": 0})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda angle: AnglE("tiny", poling_strategy="cls"),
            "AnglE has no argument 'poling_strategy'; did you mean pooling_strategy?",
        ),
        (
            lambda angle: angle.encode("a", max_length=2000),
            "max_length=2000 cannot work: the model has positions for 64 tokens; give 64 or less.",
        ),
        (
            lambda angle: angle.encode("a", layer_index=3),
            "layer_index=3 cannot work: the model has 2 layers; give a number up to that, or -1 for all.",
        ),
        (
            lambda angle: angle.encode("a", embedding_size=129),
            "embedding_start=0 and embedding_size=129 cannot work: the model's embeddings have 128 dimensions; "
            "give a start below that, and a size of at most what is left, or leave them out.",
        ),
        (
            lambda angle: angle.encode("a", embedding_start=127, embedding_size=0),
            "embedding_start=127 and embedding_size=0 cannot work: the model's embeddings have 128 dimensions; "
            "give a start below that, and a size of at most what is left, or leave them out.",
        ),
        (
            lambda angle: angle.encode("a", embedding_start=128),
            "embedding_start=128 and embedding_size=None cannot work: the model's embeddings have 128 dimensions; "
            "give a start below that, and a size of at most what is left, or leave them out.",
        ),
        (lambda angle: angle.fit([], epoch=3), "AnglE.fit has no argument 'epoch'; did you mean epochs?"),
        (
            lambda angle: angle.fit([], max_steps=3),
            "AnglE.fit has no argument 'max_steps'; write argument_kwargs={'max_steps': ...}.",
        ),
        (
            lambda angle: angle.fit([], w1=3),
            "AnglE.fit has no argument 'w1'; it is called 'cosine_w' now, and belongs in loss_kwargs.",
        ),
        (
            lambda angle: angle.fit([], evaluation_strategy="no"),
            "AnglE.fit has no argument 'evaluation_strategy'; it is called 'eval_strategy' now.",
        ),
        (
            lambda angle: angle.fit([], loss_kwargs={"w2": 35}),
            "loss_kwargs has 'w2', which is called 'ibn_w' now: write ibn_w=35.",
        ),
        (
            lambda angle: angle.fit([], loss_kwargs={"angle_t": 1}),
            "loss_kwargs has 'angle_t', which has no counterpart here; did you mean angle_tau?",
        ),
        (
            lambda angle: angle.fit([], argument_kwargs={"fsdp": "full_shard"}),
            "argument_kwargs has 'fsdp', which has no counterpart here",
        ),
        (
            lambda angle: angle.fit([], save_strategy="best"),
            "save_strategy=best is not known. Choose one of: steps, epoch, no.",
        ),
        (
            lambda angle: AnglE("tiny", model_kwargs={"quantization_config": 1}),
            "model_kwargs has 'quantization_config', which has no counterpart here",
        ),
    ],
)
def test_wrong_names_suggest_the_right_ones(angle: AnglE, call: Callable[[AnglE], Any], message: str) -> None:
    with pytest.raises((TypeError, ConfigError)) as caught:
        call(angle)
    assert str(caught.value).startswith(message)


def test_invalid_text_is_named_by_its_position(angle: AnglE) -> None:
    with pytest.raises(TypeError, match="text 2 of 3 is None: encode takes texts, or mappings"):
        angle.encode(["a", None, "b"])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (None, "text 1 of 1 is None: encode takes texts"),
        ([{"body": "a"}], "text 1 of 1 has no text for text: give mappings such as {'text': '...'}"),
    ],
)
def test_invalid_inputs_of_encode_are_refused(angle: AnglE, inputs: Any, message: str) -> None:
    with pytest.raises(TypeError, match=re.escape(message)):
        angle.encode(inputs)


def test_a_template_s_fields_must_all_be_given(angle: AnglE) -> None:
    with pytest.raises(
        TypeError, match=r"text 2 of 2 has no text for topic: give mappings such as \{'text': '\.\.\.',"
    ):
        angle.encode([{"text": "a", "topic": "b"}, "a"], prompt="{topic}: {text}")


def test_a_token_that_the_model_does_not_know() -> None:
    """With options too, for which a tokenizer is made for the call."""
    angle = AnglE("tiny")
    angle.tokenizer.add_tokens(["zzz"])
    for options in ({}, {"max_length": 8}, {"prompt": "a {text}"}):
        with pytest.raises(ConfigError, match="writes 'zzz' as number"):
            angle.encode("a zzz", **options)


@pytest.mark.parametrize("max_length", [1, 0, -5])
def test_a_length_that_leaves_no_text(angle: AnglE, max_length: int) -> None:
    with pytest.raises(ConfigError, match=f"max_length={max_length} cannot work: it must be at least 2"):
        angle.encode("a", max_length=max_length)


def test_setting_given_twice_is_refused(angle: AnglE, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="argument_kwargs has num_train_epochs=1 beside epochs=2, which says the same"
    ):
        angle.fit([], epochs=2, output_dir=str(tmp_path / "run"), argument_kwargs={"num_train_epochs": 1})


def test_save_pretrained_overwrites_nothing(angle: AnglE, tmp_path: Path) -> None:
    angle.save_pretrained(str(tmp_path / "saved"))
    before = snapshot(tmp_path)
    np.testing.assert_array_equal(AnglE.from_pretrained(str(tmp_path / "saved")).encode(TEXTS), angle.encode(TEXTS))
    for exist_ok in (True, False):
        with pytest.raises(ConfigError, match="is there already, so nothing is written: give a new folder"):
            angle.save_pretrained(str(tmp_path / "saved"), exist_ok=exist_ok)
    (tmp_path / "empty").mkdir()
    angle.save_pretrained(str(tmp_path / "empty"))
    assert snapshot(tmp_path / "saved") == snapshot(tmp_path / "empty")
    assert {f"saved/{name}" for name in snapshot(tmp_path / "saved")} <= before.keys()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_cuda_and_fp16_without_a_gpu_fall_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.warns(UserWarning, match="There is no CUDA device here: the model stays on the CPU"):
        angle = AnglE("tiny").cuda()
    assert angle.device == torch.device("cpu")
    angle.fit(rows("train", 20), output_dir=str(tmp_path / "run"), fp16=True, config={"train": {"max_steps": 1}})
    assert "fp16 needs a GPU, and there is none: training goes on in " in capsys.readouterr().out
    assert load_config(tmp_path / "run" / "config.yaml").train.mixed_precision in ("bf16", "no")


def test_formats_and_prompts_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert (DatasetFormats.A, DatasetFormats.B) == ("text1,text2,label", "text,positive,negative")
    DatasetFormats.list_formats()
    Prompts.list_prompts()
    printed = capsys.readouterr().out.splitlines()
    assert printed[2] == "DatasetFormats.C = 'text,positive'"
    assert printed[3].startswith("Prompts.A = 'Summarize sentence")
    assert len(printed) == 6


def test_all_arguments_are_settings_of_the_schema() -> None:
    from angle.compat.arguments import ANGLE_EMB
    from angle.config.keys import setting_types, unflatten

    owners = ("AnglE", "fit", "argument_kwargs", "trainer_kwargs", "model_kwargs", "loss_kwargs", "lora_config_kwargs")
    keys = [key for owner in owners for key in ANGLE_EMB.python_settings(owner).values()]
    assert len(keys) > 50
    assert set(keys) <= setting_types(TrainConfig).keys()
    assert json.dumps(unflatten({"a.b": 1, "a.c": 2, "d": 3})) == '{"a": {"b": 1, "c": 2}, "d": 3}'
