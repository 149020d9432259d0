"""Batches of several sources: their rows, texts, formats and losses; and what of their settings cannot work."""

from __future__ import annotations

import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SpyTokenizer, write_jsonl

from angle.config import SourceConfig, TrainConfig
from angle.config.build import build_config, config_text, load_config
from angle.config.keys import flatten, unflatten
from angle.data.collate import collate
from angle.data.loading import load_corpus
from angle.data.plan import BatchSpec, Mixture
from angle.data.training_data import InMemoryTrainingData, TrainingSource
from angle.errors import ConfigError, DataError
from angle.modeling.tiny import tiny_tokenizer
from angle.modeling.tokenizer import TextTokenizer
from angle.structures import Batch
from angle.training.data import load_data

PAIRS = [{"text1": f"a{n}", "text2": f"b{n}", "label": n / 10} for n in range(11)]
TRIPLES = [{"text": f"t{n}", "positive": f"p{n}", "negative": [f"n{n}", "shared"][: 1 + n % 2]} for n in range(9)]
QUESTIONS = [{"text": [f"q{n}", f"r{n}"], "positive": f"p{n}"} for n in range(7)]


def settings(tmp_path: Path, sources: dict[str, dict[str, Any]], **data: Any) -> TrainConfig:
    tables = {"sts": PAIRS, "nli": TRIPLES, "qa": QUESTIONS}
    named = {
        name: {"name_or_path": str(write_jsonl(tmp_path / f"{name}.jsonl", tables[name])), **own}
        for name, own in sources.items()
    }
    return build_config({"data": {"train": {"sources": named}, **data}}, TrainConfig)


def loaded(
    tmp_path: Path, sources: dict[str, dict[str, Any]], batch_size: int = 4, **data: Any
) -> InMemoryTrainingData:
    config = settings(tmp_path, sources, **data)
    train = load_data(config.data, config.data_format.name, SpyTokenizer(), BatchSpec(batch_size)).train  # type: ignore[arg-type]
    assert isinstance(train, InMemoryTrainingData)
    return train


ALL: dict[str, dict[str, Any]] = {"sts": {}, "nli": {"batch_size": 3}, "qa": {}}


def test_each_batch_is_that_of_its_source_alone(tmp_path: Path) -> None:
    """All that an objective and an encoder see is the same, but for the numbers that texts have."""
    data = loaded(tmp_path, ALL)
    assert data.loss_names == ("sts", "nli", "qa")
    corpora = {source.name: source.corpus for source in data.sources}
    seen: dict[str, int] = dict.fromkeys(corpora, 0)
    for step in range(2 * data.steps_per_epoch):
        ((part,),) = data.plan.batches(step)
        (batch,) = next(data.steps(step))
        name = data.sources[part.source].name
        alone = collate(corpora[name], part.rows, part.epoch, BatchSpec(4))
        assert batch.structure.loss == part.source
        assert batch.structure.format is corpora[name].format
        assert len(part.rows) <= (3 if name == "nli" else 4)
        np.testing.assert_array_equal(batch.tokens.ids, alone.tokens.ids)
        assert torch.equal(batch.structure.embedding_index, alone.structure.embedding_index)
        assert torch.equal(batch.structure.negatives.embedding_index, alone.structure.negatives.embedding_index)
        assert (batch.structure.labels is None) == (alone.structure.labels is None)
        offset = batch.structure.text_ids - alone.structure.text_ids
        assert offset.unique().numel() == 1  # ids of a source's own
        assert torch.equal(
            batch.structure.known_positives[:, 1:] - offset[0, 0], alone.structure.known_positives[:, 1:]
        )
        seen[name] += len(part.rows)
    assert seen == data.rows_seen(2 * data.steps_per_epoch) == {"sts": 22, "nli": 18, "qa": 14}


def texts_of(batch: Batch, data: InMemoryTrainingData) -> list[tuple[int, ...]]:
    return [tuple(data.tokens.take(np.array([text])).ids.tolist()) for text in batch.text_ids]


def test_rows_of_formats_b_and_c_share_batches_and_candidates(tmp_path: Path) -> None:
    data = loaded(tmp_path, {"nli": {}, "qa": {}}, mix="together", negatives="all")
    assert data.loss_names == ()
    assert [data_format.name for data_format in data.formats] == ["B"]
    mixed = 0
    for (batch,) in islice(data.steps(0), 8):
        negatives_of_row = np.bincount(batch.structure.negatives.rows, minlength=len(batch.rows))
        is_qa = batch.rows >= len(TRIPLES)
        assert (negatives_of_row[is_qa] == 0).all()
        assert (negatives_of_row[~is_qa] == 1 + batch.rows[~is_qa] % 2).all()
        mixed += 0 < is_qa.sum() < len(is_qa)
        texts = texts_of(batch, data)
        assert len(set(texts)) == len(texts)  # "p3" of both sources is one text
    assert mixed > 4
    assert data.rows_seen(4) == {"nli": 9, "qa": 7}


def test_a_text_of_two_sources_is_no_negative_of_itself(tmp_path: Path) -> None:
    data = loaded(tmp_path, {"nli": {}, "qa": {}}, batch_size=16, mix="together")
    ((batch,),) = islice(data.steps(0), 1)
    ids = batch.structure.text_ids[:, 1]
    by_row = dict(zip(batch.rows.tolist(), ids.tolist(), strict=True))
    assert all(by_row[n] == by_row[len(TRIPLES) + n] for n in range(len(QUESTIONS)))
    assert len(ids.unique()) == len(TRIPLES)


@pytest.mark.parametrize("duplicates", ["mask", "drop"])
@pytest.mark.parametrize("together", [False, True])
def test_shards_add_up_to_the_batch_of_one_process(tmp_path: Path, together: bool, duplicates: str) -> None:
    mixed = loaded(tmp_path, {"nli": {}, "qa": {}}, mix="together") if together else loaded(tmp_path, ALL)
    sources = [TrainingSource(source.corpus, source.name) for source in mixed.sources]
    mixture = Mixture(together)
    whole = InMemoryTrainingData(sources, BatchSpec(6, 2, duplicates), mixture)
    shards = [
        InMemoryTrainingData(sources, BatchSpec(3, 2, duplicates, world_size=2, rank=rank), mixture) for rank in (0, 1)
    ]
    for one, *parts in islice(zip(whole.steps(0), *(shard.steps(0) for shard in shards), strict=True), 7):
        for batch, *own in zip(one, *parts, strict=True):
            texts = [text for shard in own for text in texts_of(shard, whole)]
            alone = texts_of(batch, whole)
            for structure in (part.structure for part in own):
                assert [texts[n] for n in structure.flat_embedding_index] == [
                    alone[n] for n in batch.structure.flat_embedding_index
                ]
                assert torch.equal(structure.known_positives, batch.structure.known_positives)
                assert structure.loss == batch.structure.loss


SOURCES: list[tuple[dict[str, dict[str, Any]], dict[str, Any], str]] = [
    (
        ALL,
        {"mix": "together"},
        "data.train.sources.nli.batch_size cannot work with data.mix=together, whose batches have rows of all sources: "
        "type data.mix=by_source, or leave it out.",
    ),
    (
        {"nli": {"loss": {"ibn_w": 3}}, "qa": {}},
        {"mix": "together"},
        "data.train.sources.nli.loss cannot work with data.mix=together, whose batches have rows of all sources: type "
        "data.mix=by_source, or leave it out.",
    ),
    (
        {"nli": {"weight": 1}, "qa": {}},
        {},
        "data.train.sources.qa.weight is missing: give every source a weight, or none of them.",
    ),
    (
        {"nli": {"weight": 0}, "qa": {"weight": 0}},
        {},
        "The weights of data.train.sources sum to 0: give one of them a weight above 0.",
    ),
    (
        {"nli": {"weight": 1}, "qa": {"weight": 2}},
        {"sampling": "round_robin"},
        "data.train.sources.nli.weight has no effect with data.sampling=round_robin: leave one of them out.",
    ),
    (
        {"nli": {}},
        {"streaming": True},
        "data.streaming=true cannot work with data.train.sources: leave one of them out.",
    ),
    (
        {"nli": {"loss": {"ibn": 3}}},
        {},
        "data.train.sources.nli.loss=ibn is not known; did you mean ibn_w? Choose one of: cosine_w, ibn_w, angle_w, "
        "positives_w, reverse_w, cln_w, cosine_tau, ibn_tau, angle_tau, positive_above.",
    ),
    (
        {"nli": {"wieght": 3}},
        {},
        "There is no setting data.train.sources.nli.wieght; did you mean data.train.sources.nli.weight?",
    ),
    (
        {"nli": {"loss": {"ibn_tau": None}}},
        {},
        "data.train.sources.nli.loss.ibn_tau=null cannot work: it must be a number.",
    ),
    (
        {"nli": {"loss": {"ibn_w": -1}}},
        {},
        "data.train.sources.nli.loss: loss.ibn_w=-1 cannot work: it must be at least 0.",
    ),
    (
        {"nli": {}, "qa": {}},
        {"valid_split": 0.5},
        "data.valid_split=0.5 cannot work with several data.train.sources: give rows of their own, "
        "data.valid.name_or_path=FILE.",
    ),
    (
        {"nli": {}},
        {"sampling_temperature": 3},
        "data.sampling_temperature=3 has no effect without data.sampling=temperature: add it, or leave it out.",
    ),
    ({"nli": {"weight": "much"}}, {}, "data.train.sources.nli.weight=much cannot work: it must be a number."),
    ({"nli": {"batch_size": 0}}, {}, "data.train.sources.nli.batch_size=0 cannot work: it must be at least 1."),
    ({"nli": {"format": "D"}}, {}, "data.train.sources.nli.format=D is not known. Choose one of: auto, A, B, C."),
]


@pytest.mark.parametrize(("sources", "data", "message"), SOURCES)
def test_settings_that_cannot_work(
    tmp_path: Path, sources: dict[str, dict[str, Any]], data: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        settings(tmp_path, sources, **data)
    assert str(caught.value) == message


def test_other_settings_that_cannot_work(tmp_path: Path) -> None:
    def complaint(train: dict[str, Any], **data: Any) -> str:
        with pytest.raises(ConfigError) as caught:
            build_config({"data": {"train": train, **data}}, TrainConfig)
        return str(caught.value)

    one = {"name_or_path": "a.jsonl"}
    assert complaint({"sources": {"a": one}, "name_or_path": "b.jsonl"}) == (
        "data.train.name_or_path=b.jsonl cannot work beside data.train.sources: add it to these under a name of its "
        "own, or type data.train.name_or_path=null."
    )
    assert complaint({"sources": {"a": one}, "split": "dev"}) == (
        "data.train.split=dev has no effect beside data.train.sources: write it for each of them, as "
        "data.train.sources.a.split."
    )
    assert complaint({"sources": {1: one}}) == (
        "data.train.sources.1 cannot be named so: give it a name with a letter, or quotes."
    )
    with pytest.raises(ConfigError, match=r"^data\.train\.sources\.a\.format=A cannot work with loss=format_b, which"):
        build_config(
            {"data": {"train": {"sources": {"a": one | {"format": "A"}}}}, "data_format": {"name": "B"}}, TrainConfig
        )
    assert complaint(one, mix="together") == (
        "data.mix=together needs several sources: name them in data.train.sources."
    )
    assert complaint({"sources": {"a/b": one}}) == (
        "data.train.sources.a/b cannot be named so: letters, digits, - and _ make up a source's name."
    )
    assert complaint({"sources": {"a": {}}}) == (
        "data.train.sources.a.name_or_path is missing: give a file, a folder or a hub name."
    )
    file = {"name_or_path": str(write_jsonl(tmp_path / "a.jsonl", PAIRS))}
    assert complaint({"sources": {"a": file}}, test=file).startswith("data.test is the training data itself")


def test_rows_that_cannot_be_mixed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has sts \(A\), nli \(B\): type data.mix=by_source"):
        loaded(tmp_path, {"sts": {}, "nli": {}}, mix="together")
    with pytest.raises(DataError, match=r"Type loss=auto data\.train\.sources\.nli\.format=B to train on it"):
        loaded(tmp_path, {"nli": {"format": "A"}})
    config = settings(tmp_path, {"nli": {}})
    write_jsonl(tmp_path / "nli.jsonl", [{"text": "", "positive": "p", "negative": "n"}])
    with pytest.raises(DataError, match=r"data\.train\.sources\.nli: .* line 1: text is empty"):
        load_data(config.data, "auto", SpyTokenizer(), BatchSpec(4))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"^data\.train\.sources\.qa\.batch_size=1 leaves a row no other row"):
        loaded(tmp_path, {"nli": {"batch_size": 1}, "qa": {"batch_size": 1}})
    copy = shutil.copy(tmp_path / "qa.jsonl", tmp_path / "copy.jsonl")
    with pytest.raises(DataError, match=r"^data\.valid has the rows that are trained on"):
        loaded(tmp_path, {"sts": {}, "qa": {}}, valid={"name_or_path": str(copy)})


def test_saved_settings_have_the_sources(tmp_path: Path) -> None:
    config = settings(
        tmp_path, {"sts": {"loss": {"ibn_w": 3.0}, "weight": 2.0}, "qa": {"weight": 1.0}}, mix="by_source"
    )
    (tmp_path / "config.yaml").write_text(config_text(config))
    assert load_config(tmp_path / "config.yaml") == config
    flat = flatten(config)
    name = str(tmp_path / "sts.jsonl")
    assert flat["data.train.sources"]["sts"] == {"name_or_path": name, "weight": 2.0, "loss": {"ibn_w": 3.0}}
    assert (
        build_config(unflatten(flat), TrainConfig) == config
    )  # as a run that is resumed, or a command that is printed


def test_a_text_in_two_templates_of_two_sources_is_no_negative_of_itself(tmp_path: Path) -> None:
    """The owl is a document of one source and a query of the other."""
    write_jsonl(tmp_path / "a.jsonl", [{"text": "fox", "positive": "owl"}, {"text": "red", "positive": "dog"}])
    write_jsonl(tmp_path / "b.jsonl", [{"text": "owl", "positive": "bird"}])
    sources = {name: {"name_or_path": str(tmp_path / f"{name}.jsonl")} for name in ("a", "b")}
    config = build_config({"data": {"train": {"sources": sources}, "mix": "together"}}, TrainConfig)
    tokenizer = TextTokenizer(tiny_tokenizer(), 64, prompts={"query": "the {text}", "document": "{text} word"})
    data = load_data(config.data, "auto", tokenizer, BatchSpec(3, shuffle=False)).train
    ((batch,),) = islice(data.steps(0), 1)
    ids, index = batch.structure.text_ids, batch.structure.embedding_index
    assert ids[0, 1] == ids[2, 0]  # the owl
    assert index[0, 1] != index[2, 0]
    assert len(ids.unique()) == 5
    assert len(index.unique()) == 6


def test_a_source_may_have_templates_of_its_own(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_jsonl(
            tmp_path / f"{name}.jsonl", [{"text": "fox", "positive": "owl"}, {"text": "dog", "positive": "red"}]
        )
    sources: dict[str, dict[str, Any]] = {
        name: {"name_or_path": str(tmp_path / f"{name}.jsonl")} for name in ("a", "b")
    }
    sources["b"] |= {"prompt": "to {text}", "prompts": {"query": "the "}}
    config = build_config({"data": {"train": {"sources": sources}}}, TrainConfig)
    tokenizer = TextTokenizer(tiny_tokenizer(), 64, "a {text}")
    data = load_data(config.data, "auto", tokenizer, BatchSpec(2, shuffle=False)).train
    spelled = {"a": ("a fox", "a owl"), "b": ("the fox", "to owl")}
    plain = TextTokenizer(tiny_tokenizer(), 64)
    for (batch,), name in zip(islice(data.steps(0), 2), ("a", "b"), strict=True):
        texts = texts_of(batch, data)  # type: ignore[arg-type]
        wanted = [tuple(plain([text]).ids.tolist()) for text in spelled[name]]
        assert [texts[n] for n in batch.structure.embedding_index[0]] == wanted
    with pytest.raises(ConfigError, match=r"^data\.train\.sources\.b\.prompts has querry"):
        build_config({"data": {"train": {"sources": {"b": sources["b"] | {"prompts": {"querry": "x"}}}}}}, TrainConfig)
    sources["b"]["prompts"] = {"text2": "x"}
    config = build_config({"data": {"train": {"sources": sources}}}, TrainConfig)
    with pytest.raises(ConfigError, match=r"^data\.train\.sources\.b\.prompts has text2, but .* format C, whose texts"):
        load_data(config.data, "auto", tokenizer, BatchSpec(2))
    model = TextTokenizer(tiny_tokenizer(), 64, prompts={"query": "a ", "document": "the "})
    sources["b"]["prompts"] = {}
    config = build_config({"data": {"train": {"sources": sources}}}, TrainConfig)
    data = load_data(config.data, "auto", model, BatchSpec(2, shuffle=False)).train
    _, (batch,) = islice(data.steps(0), 2)
    wanted = [tuple(plain([text]).ids.tolist()) for text in ("to fox", "to owl")]
    assert [texts_of(batch, data)[n] for n in batch.structure.embedding_index[0]] == wanted  # type: ignore[arg-type]


def test_dropping_duplicates_leaves_out_repeated_negatives_of_a_row_but_not_the_row(tmp_path: Path) -> None:
    rows = [
        {"text": "t", "positive": "p", "negative": ["n", "m", "n"]},
        {"text": "u", "positive": "q", "negative": ["m"]},
    ]
    source = SourceConfig(str(write_jsonl(tmp_path / "a.jsonl", rows)))
    corpus = load_corpus(source, "train", SpyTokenizer(), negatives="all")
    structure = collate(corpus, np.arange(2), 0, BatchSpec(2, duplicates="drop")).structure
    assert structure.text_ids.tolist() == [[0, 1]]
    assert structure.negatives.text_ids.tolist() == [2, 3]


def test_the_loss_of_validation_rows_is_that_of_the_sources_of_their_format(tmp_path: Path) -> None:
    sources: dict[str, dict[str, Any]] = {"sts": {"loss": {"ibn_w": 0.0, "positive_above": 4.0}, "format": "A"}}
    config = settings(tmp_path, sources | {"qa": {"format": "C"}})
    assert config.loss_of("A").ibn_w == 0
    assert config.loss_of("B") == config.loss_of("C") == config.loss
