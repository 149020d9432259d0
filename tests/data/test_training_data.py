"""Which rows make a step: every row once, the same for every number of processes, found by seeking."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice, product
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import SpyTokenizer, tokens_of, write_jsonl
from transformers import PreTrainedTokenizerFast

from angle.config import LossConfig, SourceConfig, TrainConfig
from angle.config.build import build_config
from angle.config.keys import unflatten
from angle.data import sources
from angle.data.collate import collate, rows_without_duplicates
from angle.data.corpus import Corpus, RowTexts
from angle.data.loading import load_corpus
from angle.data.plan import BatchPlan, BatchSpec
from angle.data.streaming import StreamingTrainingData
from angle.data.training_data import InMemoryTrainingData
from angle.errors import DataError
from angle.modeling.encoder import Encoder
from angle.modeling.tiny import tiny_tokenizer
from angle.modeling.tokenizer import TextTokenizer
from angle.objective.combined import CombinedLoss
from angle.structures import FORMATS, Batch
from angle.training.setup import load_data


def rows_of(plan: BatchPlan, step: int) -> list[int]:
    """Return the global rows of a step, its batches one after the other."""
    return [int(row) for _, rows in plan.batches(step) for row in rows]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("rows", "size", "accumulation"), [(17, 4, 1), (17, 4, 2), (16, 4, 3), (3, 8, 2), (1, 1, 1)])
def test_every_row_occurs_once_per_epoch(rows, size, accumulation, shuffle):
    plan = BatchPlan(rows, BatchSpec(size, accumulation, shuffle=shuffle))
    assert plan.batches_per_epoch == -(-rows // size)
    assert plan.steps_per_epoch == -(-plan.batches_per_epoch // accumulation)
    orders = []
    for epoch in range(3):
        steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
        assert {number for step in steps for number, _ in plan.batches(step)} == {epoch}
        orders.append([row for step in steps for row in rows_of(plan, step)])
        assert sorted(orders[-1]) == list(range(rows))
    assert (orders[0] == list(range(rows))) is (not shuffle or rows == 1)
    assert (orders[0] == orders[1]) is (not shuffle or rows == 1)


def test_a_step_has_as_many_batches_as_are_accumulated():
    plan = BatchPlan(22, BatchSpec(4, accumulation=4))
    assert [[len(rows) for _, rows in plan.batches(step)] for step in range(3)] == [[4, 4, 4, 4], [4, 2], [4, 4, 4, 4]]


def test_the_order_depends_on_the_seed():
    first, same, other = (BatchPlan(50, BatchSpec(50, seed=seed)) for seed in (1, 1, 2))
    assert rows_of(first, 3) == rows_of(same, 3) != rows_of(other, 3)


def write_rows(path: Path, rows: int) -> Path:
    """Write rows of format C, every third positive a list, some texts shared."""
    return write_jsonl(
        path,
        (
            {"text": f"t{n % 7} x", "positive": [f"p{n}", f"q{n} y", "r z"] if n % 3 == 0 else f"p{n % 5}"}
            for n in range(rows)
        ),
    )


def corpus_of(path: Path) -> Corpus:
    """Return the corpus of a file."""
    return load_corpus(SourceConfig(str(path)), "train", SpyTokenizer())


def content(*shards: Batch) -> list[list[tuple[int, ...]]]:
    """Return the tokens of every row's every role, found where the processes put their embeddings."""
    tokens = [
        tuple(shard.tokens.take(np.array([n])).ids.tolist()) for shard in shards for n in range(len(shard.tokens))
    ]
    return [[tokens[n] for n in row] for row in shards[0].structure.embedding_index.tolist()]


@pytest.mark.parametrize("duplicates", ["mask", "drop"])
@pytest.mark.parametrize(("world_size", "size", "rows"), [(2, 3, 17), (3, 2, 17), (3, 2, 19), (2, 3, 24), (5, 1, 2)])
def test_shards_add_up_to_the_batch_of_one_process(tmp_path, world_size, size, rows, duplicates):
    corpus = corpus_of(write_rows(tmp_path / "a.jsonl", rows))
    single = InMemoryTrainingData(corpus, BatchSpec(size * world_size, 2, duplicates))
    shards = [
        InMemoryTrainingData(corpus, BatchSpec(size, 2, duplicates, world_size=world_size, rank=rank))
        for rank in range(world_size)
    ]
    assert {shard.steps_per_epoch for shard in shards} == {single.steps_per_epoch}
    for single_step, *shard_steps in islice(
        zip(single.steps(0), *(shard.steps(0) for shard in shards), strict=True), 7
    ):
        for batch, *shard_batches in zip(single_step, *shard_steps, strict=True):
            assert content(batch) == content(*shard_batches)
            for shard_batch in shard_batches:
                np.testing.assert_array_equal(batch.rows, shard_batch.rows)
                assert torch.equal(batch.structure.text_ids, shard_batch.structure.text_ids)
                assert torch.equal(shard_batches[0].structure.embedding_index, shard_batch.structure.embedding_index)
                assert (
                    batch.token_count
                    == shard_batch.token_count
                    == sum(len(text) for row in content(batch) for text in row)
                )


def test_a_query_is_no_negative_of_the_same_text_as_a_document(tmp_path):
    """Both are encoded, in their own templates, but the text cannot be told from its own document."""
    rows = [{"text": "fox", "positive": "owl"}, {"text": "moon", "positive": "fox"}, {"text": "red", "positive": "a"}]
    tokenizer = TextTokenizer(tiny_tokenizer(), 64, prompts={"query": "the {text}"})
    corpus = load_corpus(SourceConfig(str(write_jsonl(tmp_path / "a.jsonl", rows))), "train", tokenizer)
    batch = collate(corpus, np.arange(3), 0, BatchSpec(3))
    ids, index = batch.structure.text_ids, batch.structure.embedding_index
    assert len(batch.tokens) == 6
    assert ids[0, 0] == ids[1, 1]
    assert index[0, 0] != index[1, 1]
    assert len(ids.unique()) == 5
    dropped = collate(corpus, np.arange(3), 0, BatchSpec(3, duplicates="drop"))
    assert dropped.rows.tolist() == [0, 2]
    embeddings = F.normalize(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    loss = CombinedLoss(LossConfig(), FORMATS["C"], 4)(embeddings, batch.structure).terms["ibn"]
    cosines = 20 * embeddings[index[:, 0]] @ embeddings[index[:, 1]].T
    cosines[0, 1] = -torch.inf
    torch.testing.assert_close(loss, F.cross_entropy(cosines, torch.arange(3)))


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_texts_are_partitioned_evenly_and_each_once(tmp_path, world_size):
    rows = [{"text": "w " * (n % 11 + 1) + f"t{n}", "positive": f"p{n % 5}"} for n in range(24)]
    corpus = corpus_of(write_jsonl(tmp_path / "a.jsonl", rows))
    shards = [
        collate(corpus, np.arange(24), 0, BatchSpec(24, world_size=world_size, rank=rank)) for rank in range(world_size)
    ]
    index, ids = shards[0].structure.embedding_index, shards[0].structure.text_ids
    per_process = -(-len(ids.unique()) // world_size)
    counts = np.zeros(world_size * per_process, int)
    for rank, shard in enumerate(shards):
        assert len(shard.tokens) == len(shard.text_ids) == len(shard.occurrences) == per_process
        assert (np.diff(shard.tokens.lengths) <= 0).all()
        np.testing.assert_array_equal(shard.max_lengths, np.max([other.tokens.lengths for other in shards], axis=0))
        counts[rank * per_process : (rank + 1) * per_process] = shard.occurrences
    np.testing.assert_array_equal(counts, np.bincount(index.flatten(), minlength=world_size * per_process))
    assert sorted(counts[counts > 0]) == sorted(ids.unique(return_counts=True)[1])
    tokens = [shard.tokens.offsets[-1] for shard in shards]
    assert max(tokens) - min(tokens) <= corpus.tokens.lengths.max()


@pytest.mark.parametrize("size", [2, 5, 40])
def test_a_batch_holds_the_texts_of_its_rows_each_once(tmp_path, size):
    corpus = corpus_of(write_rows(tmp_path / "a.jsonl", 40))
    drawn = {}
    for (batch,) in islice(InMemoryTrainingData(corpus, BatchSpec(size)).steps(0), 40 // size):
        ids = batch.structure.text_ids
        assert len(batch.tokens) == len(ids.unique())
        assert (content(batch)) == [
            [tuple(corpus.tokens.take(np.array([text])).ids.tolist()) for text in row] for row in ids.tolist()
        ]
        drawn |= dict(zip(batch.rows.tolist(), content(batch), strict=True))
    assert drawn.keys() == set(range(40))
    assert drawn[1] == [tokens_of("t1 x"), tokens_of("p1")]
    other_size = {}
    for (batch,) in islice(InMemoryTrainingData(corpus, BatchSpec(8)).steps(0), 5):
        other_size |= dict(zip(batch.rows.tolist(), content(batch), strict=True))
    assert drawn == other_size  # what a list gives does not depend on the batch's size


def test_labels_match_their_rows(tmp_path):
    rows = [{"text1": f"a{n}", "text2": f"b{n}", "label": n / 10} for n in range(10)]
    corpus = corpus_of(write_jsonl(tmp_path / "a.jsonl", rows))
    for (batch,) in islice(InMemoryTrainingData(corpus, BatchSpec(4)).steps(0), 6):
        assert batch.structure.labels.dtype == torch.float32
        assert batch.structure.labels.tolist() == pytest.approx([row / 10 for row in batch.rows.tolist()])


def test_seeking_matches_iterating(tmp_path):
    data = InMemoryTrainingData(corpus_of(write_rows(tmp_path / "a.jsonl", 17)), BatchSpec(3, 2))
    for step, batches in enumerate(islice(data.steps(0), 9)):
        sought = next(data.steps(step))
        assert [batch.rows.tolist() for batch in sought] == [batch.rows.tolist() for batch in batches]
        assert [content(batch) for batch in sought] == [content(batch) for batch in batches]


def naive_rows_without_duplicates(texts: list[list[int]]) -> list[int]:
    """Keep a row iff its texts differ and no earlier kept row has one of them; if there is none, the first."""
    selected: list[int] = []
    for row, text_ids in enumerate(texts):
        earlier_ids = [text for earlier in selected for text in texts[earlier]]
        if len(text_ids) == len(set(text_ids)) and not any(text in earlier_ids for text in text_ids):
            selected.append(row)
    return selected or [0]


@pytest.mark.parametrize("roles", [2, 3])
def test_rows_without_duplicates(roles):
    for seed in range(30):
        random = np.random.default_rng(seed)
        texts = random.integers(0, 6 if seed % 3 else 2, (8, roles))
        negative_rows = np.sort(random.integers(0, 8, 4 * (roles - 2)))
        row_texts = RowTexts(texts[:, :2], np.arange(len(negative_rows)) % 7, negative_rows)
        rows = [
            [*pair, *row_texts.negatives[negative_rows == row].tolist()]
            for row, pair in enumerate(texts[:, :2].tolist())
        ]
        assert rows_without_duplicates(row_texts).tolist() == naive_rows_without_duplicates(rows)


def test_duplicates(tmp_path):
    corpus = corpus_of(write_rows(tmp_path / "a.jsonl", 20))
    rows = np.arange(20)
    dropped = collate(corpus, rows, 0, BatchSpec(20, duplicates="drop"))
    ids = dropped.structure.text_ids.flatten().tolist()
    assert len(ids) == len(set(ids))
    assert 0 < len(dropped.rows) < 20
    for duplicates in ("mask", "keep"):
        assert collate(corpus, rows, 0, BatchSpec(20, duplicates=duplicates)).rows.tolist() == rows.tolist()


def test_positives_that_were_not_drawn_are_no_negatives(tmp_path):
    cells = [
        (["q0"], ["p0", "p1", "p2"]),
        (["q1", "q0"], ["p1"]),
        (["q2"], ["p2", "p3"]),
        (["q3"], ["p3"]),
        (["q4"], ["p0", "q0"]),
    ]
    known = {pair for texts, positives in cells for pair in product(texts, positives)}
    known |= {(positive, text) for text, positive in known}
    corpus = corpus_of(write_jsonl(tmp_path / "a.jsonl", ({"text": a, "positive": b} for a, b in cells)))
    names = list(dict.fromkeys(text for row in cells for cell in row for text in cell))
    embeddings = F.normalize(torch.randn(9, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64), dim=1)
    objective = CombinedLoss(LossConfig(ibn_w=1.0), FORMATS["C"], 8)
    epochs_with_extra_positives = 0
    for epoch in range(12):
        structure = collate(corpus, np.array([4, 2, 0, 1, 3]), epoch, BatchSpec(5)).structure
        rows = [[names[text] for text in row] for row in structure.text_ids.tolist()]
        masked = [
            [n != m and (text == other or (text, other) in known) for m, (_, other) in enumerate(rows)]
            for n, (text, _) in enumerate(rows)
        ]
        queries, positives = embeddings[structure.embedding_index].unbind(1)
        logits = (20 * queries @ positives.T).masked_fill(torch.tensor(masked), -torch.inf)
        expected = F.cross_entropy(logits, torch.arange(5)).item()
        assert objective(embeddings, structure).total.item() == pytest.approx(expected, rel=1e-12)
        drawn = replace(structure, known_positives=structure.known_positives[:0])
        epochs_with_extra_positives += objective(embeddings, drawn).total.item() > expected
    assert epochs_with_extra_positives > 6


def stream(
    path: Path, window: int = 8, tokenizer: SpyTokenizer | None = None, **batch_spec: int
) -> StreamingTrainingData:
    """Return a stream of a file in batches of two rows."""
    return StreamingTrainingData(
        SourceConfig(str(path)), "auto", tokenizer or SpyTokenizer(), BatchSpec(2, **batch_spec), window
    )


@pytest.fixture
def ten_second_limit() -> Iterator[None]:
    """Fail a test that would run for ever."""

    def stop(*_: object) -> None:
        raise TimeoutError

    previous_handler = signal.signal(signal.SIGALRM, stop)
    signal.alarm(10)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous_handler)


def texts_in(step: list[Batch]) -> list[list[tuple[int, ...]]]:
    """Return the tokens of all rows of a step."""
    return [row for batch in step for row in content(batch)]


@pytest.mark.parametrize(("window", "accumulation"), [(8, 1), (4, 2), (3, 1), (100, 1), (100, 3)])
def test_a_stream_yields_every_row_once_per_pass(tmp_path, window, accumulation):
    rows = [{"text": f"t{n}", "positive": f"p{n}"} for n in range(21)]
    data = stream(write_jsonl(tmp_path / "a.jsonl", rows), window, accumulation=accumulation)
    expected = sorted([tokens_of(row["text"]), tokens_of(row["positive"])] for row in rows)
    steps, passes = data.steps(0), []
    for _ in range(2):
        pass_rows: list[list[tuple[int, ...]]] = []
        while len(pass_rows) < 21:
            pass_rows += texts_in(next(steps))
        assert sorted(pass_rows) == expected
        passes.append(pass_rows)
    assert passes[0] != passes[1]


@pytest.mark.parametrize("rows", [21, 24, 5])
def test_seeking_in_a_stream_matches_iterating(tmp_path, rows):
    data = stream(write_rows(tmp_path / "a.jsonl", rows), accumulation=2)
    for number, step in enumerate(islice(data.steps(0), 15)):
        assert texts_in(next(data.steps(number))) == texts_in(step)


@pytest.mark.parametrize("rows", [21, 24])
def test_a_resumed_stream_must_have_the_rows_that_were_read(tmp_path, rows):
    path = write_rows(tmp_path / "a.jsonl", rows)
    read = [step[-1].rows_read for step in islice(stream(path).steps(0), 15)]
    assert len(set(read)) == 4  # one a window
    for start in range(1, 15):
        next(stream(path).steps(start, read[start - 1]))
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:9], lines[9].replace("t2 x", "s2 x"), *lines[10:]]))
    for start in range(1, 15):
        if start <= 4:  # the second window was not read yet
            next(stream(path).steps(start, read[start - 1]))
        else:
            with pytest.raises(DataError, match=f"does not have the rows that the first {start} steps were trained on"):
                next(stream(path).steps(start, read[start - 1]))


def test_reading_lazily_changes_no_batch(tmp_path, monkeypatch):
    path = write_rows(tmp_path / "a.jsonl", 50)
    lazy = [texts_in(step) for step in islice(stream(path).steps(0), 60)]
    open_tables = sources.open_tables
    monkeypatch.setattr(
        sources, "open_tables", lambda *args, **kwargs: open_tables(*args, **kwargs | {"streaming": False})
    )
    assert [texts_in(step) for step in islice(stream(path).steps(0), 60)] == lazy


def test_a_stream_reports_a_broken_line_when_it_is_reached(tmp_path):
    path = write_rows(tmp_path / "a.jsonl", 2000)
    with path.open("a") as file:
        file.write('{"text": \n')
    steps = stream(path).steps(0)
    assert len(list(islice(steps, 900))) == 900
    with pytest.raises(DataError, match=r"line 2001 is not valid JSON: Expecting value \(column 10\)"):
        list(islice(steps, 200))


def test_a_stream_whose_file_changes_between_passes_ends(tmp_path):
    path = write_rows(tmp_path / "a.jsonl", 40)
    steps = stream(path).steps(0)
    list(islice(steps, 25))
    rows = path.read_text().splitlines(keepends=True)
    path.write_text("".join(rows[::-1]))
    with pytest.raises(DataError, match=r"a\.jsonl was written to during the run, which would go on with other rows"):
        list(islice(steps, 40))


def test_what_a_stream_skips_is_not_tokenised(tmp_path):
    rows = [{"text": f"t{n}", "positive": f"p{n}"} for n in range(24)]
    tokenizer = SpyTokenizer()
    next(stream(write_jsonl(tmp_path / "a.jsonl", rows), tokenizer=tokenizer).steps(8))
    assert sorted(tokenizer.seen) == sorted(text for row in rows[16:] for text in row.values())


def test_shards_of_a_stream_add_up_to_the_batches_of_one_process(tmp_path):
    path = write_rows(tmp_path / "a.jsonl", 23)
    single = StreamingTrainingData(SourceConfig(str(path)), "auto", SpyTokenizer(), BatchSpec(4), 8).steps(0)
    shards = [stream(path, world_size=2, rank=rank).steps(0) for rank in range(2)]
    for step, first, second in islice(zip(single, *shards, strict=True), 14):
        assert texts_in(step) == [row for pair in zip(first, second, strict=True) for row in content(*pair)]


@pytest.mark.usefixtures("ten_second_limit")
@pytest.mark.parametrize("good_rows", [0, 5, 8], ids=["all bad", "some bad", "bad after full windows"])
def test_bad_rows_of_a_stream_are_reported(tmp_path, good_rows):
    rows = [{"text": f"t{n}", "positive": f"p{n}" if n < good_rows else None} for n in range(good_rows + 3)]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    with pytest.raises(DataError, match=rf"line {good_rows + 1}: positive is null \(3 such rows\)"):
        list(islice(stream(path).steps(0), 9))


@pytest.mark.usefixtures("ten_second_limit")
def test_a_stream_of_rows_that_are_all_dropped_ends(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text1": "a", "text2": "b", "label": "x"}] * 3)
    source = SourceConfig(str(path), label_map={"x": None})
    data = StreamingTrainingData(source, "auto", SpyTokenizer(), BatchSpec(2), 4)
    with pytest.raises(DataError, match="no usable rows: label_map dropped all 3"):
        next(data.steps(0))


def test_describe(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": f"t{n}", "positive": f"p{n}"} for n in range(9)])
    data = InMemoryTrainingData(corpus_of(path), BatchSpec(7, shuffle=False))
    assert data.describe(0) == ", ".join(f"{path} line {n}" for n in range(1, 6)) + " and 2 more"
    assert data.describe(1) == f"{path} line 8, {path} line 9"
    assert data.descriptions == [f"{path}: 9 rows, format C"]


def test_saving_the_model_while_a_stream_is_tokenised_lengthens_no_text(tmp_path, monkeypatch):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "the dog " * 40, "positive": "a cat"}] * 4)
    settings = {
        "model.max_length": 16,
        "data.train.name_or_path": str(path),
        "data.streaming": True,
        "train.max_steps": 1,
    }
    config = build_config(unflatten(settings), TrainConfig)
    encoder = Encoder.load(config.model, config.pooling)
    data = load_data(config.data, "auto", encoder.tokenizer, BatchSpec(4)).train
    set_limits, saves = PreTrainedTokenizerFast.set_truncation_and_padding, []

    def save_once_limits_are_set(tokenizer: PreTrainedTokenizerFast, *args: object, **kwargs: object) -> None:
        """Save at the worst moment: between the tokenizer's limits and the tokens, as another thread may."""
        set_limits(tokenizer, *args, **kwargs)
        encoder.tokenizer.save(tmp_path / "model")
        saves.append(tokenizer)

    monkeypatch.setattr(PreTrainedTokenizerFast, "set_truncation_and_padding", save_once_limits_are_set)
    ((batch,),) = islice(data.steps(0), 1)
    assert saves
    assert batch.tokens.lengths.max() == 16
