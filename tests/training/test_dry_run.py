"""The dry run: what it counts, and that it writes nothing."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import decoder_tokenizer, snapshot, write_jsonl
from transformers import LlamaConfig, LlamaModel

from angle import TrainConfig, build_config, fit
from angle.config import SourceConfig
from angle.data.loading import load_corpus
from angle.data.plan import BatchSpec
from angle.data.training_data import InMemoryTrainingData
from angle.errors import ConfigError
from angle.modeling.tiny import tiny_tokenizer
from angle.modeling.tokenizer import TextTokenizer
from angle.training.dry_run import _longest_batch, dry_run
from benchmarks.memory import Shape, measure, predict, random_model

ROWS = [
    {"text": "a fox", "positive": "the owl", "negative": "red"},
    {"text": "the moon under a red moon", "positive": "a green fox", "negative": "the owl sleep in the red word"},
    {"text": "green", "positive": "colour", "negative": "owl"},
]


def make_llama(folder: Path) -> Path:
    """Write a model of Llama 2's shape, scaled down: all layers alike, as many key as query heads, no biases."""
    torch.manual_seed(0)
    tokenizer = decoder_tokenizer(start=True)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=172, num_hidden_layers=4, num_attention_heads=4
    )
    LlamaModel(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def settings(tmp_path: Path, train: dict[str, Any] | None = None, **groups: Any) -> TrainConfig:
    rows = {"train": {"name_or_path": str(write_jsonl(tmp_path / "rows.jsonl", ROWS))}}
    train = {"batch_size": 2, "dry_run": True, **(train or {})}
    return build_config({"data": rows, "train": train, **groups}, TrainConfig)


def test_dry_run_reports_memory_by_part(tmp_path: Path) -> None:
    result = dry_run(settings(tmp_path))
    weights = 321_920 * 4
    trained = result.memory["trained weights"]
    assert trained < weights < trained + result.memory["frozen weights"]
    assert result.memory["gradients"] == trained
    counters = result.memory["optimiser state"] - 2 * trained  # Adam's two moments, and steps
    assert 0 < counters < 1000
    assert (result.rows, result.texts) == (2, 6)
    assert result.memory["activations"] > result.tokens * 128 * 4 * 2


def test_the_longest_rows_are_chosen(tmp_path: Path) -> None:
    short, longest = (dry_run(settings(tmp_path, {"batch_size": size})) for size in (1, 2))
    tokenizer = tiny_tokenizer()
    lengths = sorted((sum(len(tokenizer(text).input_ids) for text in row.values()) for row in ROWS), reverse=True)
    assert (short.tokens, longest.tokens) == (lengths[0], sum(lengths[:2]))


def test_a_process_measures_its_shard_of_the_global_batch(tmp_path: Path) -> None:
    rows = write_jsonl(tmp_path / "rows.jsonl", ROWS * 2)
    corpus = load_corpus(SourceConfig(str(rows)), "train", TextTokenizer(tiny_tokenizer(), 64))
    batches = [
        _longest_batch(
            InMemoryTrainingData(corpus, BatchSpec(batch_size=2, duplicates="keep", world_size=2, rank=rank))
        )[1]
        for rank in (0, 1)
    ]
    sizes = [sum(len(tiny_tokenizer()(text).input_ids) for text in row.values()) for row in ROWS]
    longest = np.argsort(sizes)[-2:].tolist()
    for batch in batches:
        assert sorted(row % 3 for row in batch.rows) == sorted(longest * 2)
    tokens = [len(batch.tokens.ids) for batch in batches]
    assert sum(tokens) == pytest.approx(sum(sizes[row] for row in longest), abs=tokens[0] - tokens[1])


def test_training_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        fit(settings(tmp_path))
    assert str(error.value) == (
        "train.dry_run=true trains nothing, so fit has nothing to do: call angle.dry_run instead."
    )


def test_predicted_memory_matches_the_measured_one(tmp_path: Path) -> None:
    sizes = {
        "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 30_000,
    }  # fmt: skip
    shape = Shape("small", "llama", sizes)
    random_model(shape, tmp_path)
    for bits in (None, 4):
        predicted, measured = predict(shape, bits, 8, 8, 32), measure(tmp_path, bits, 8, 4, 32)
        for part in ("frozen weights", "trained weights", "gradients", "optimiser state"):
            assert measured[part] == pytest.approx(predicted[part], rel=0.01)
        assert measured["activations"] == pytest.approx(predicted["activations"], rel=0.15)


def test_frozen_weights_are_held_once(tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "model")
    model = {"name_or_path": str(folder), "dtype": "bfloat16"}
    lora = {"enabled": True, "r": 4, "alpha": 8}
    result = dry_run(settings(tmp_path, model=model, lora=lora)).memory
    parameters = sum(parameter.numel() for parameter in LlamaModel.from_pretrained(folder).parameters())
    assert np.isclose(result["frozen weights"], parameters * 2, rtol=0.01)  # bfloat16, and a few buffers
    adapters = sum(4 * (a + b) for a, b in [(64, 64)] * 4 + [(64, 172)] * 3) * 4  # r (in + out), seven a layer
    assert result["trained weights"] == result["gradients"] == adapters * 4
    checkpointed = dry_run(settings(tmp_path, model=model | {"gradient_checkpointing": True}, lora=lora)).memory
    assert checkpointed["activations"] < 0.6 * result["activations"]


def test_resuming_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        settings(tmp_path, {"resume": "run"})
    assert str(error.value) == (
        "train.resume=run cannot work with train.dry_run=true, which tries a new run's settings: leave one out."
    )


@pytest.mark.slow
def test_dry_run_of_bidirectional_4_bit_llama(
    command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    folder = make_llama(tmp_path / "model")
    write_jsonl(tmp_path / "rows.jsonl", ROWS)
    before = snapshot(tmp_path)
    done = command(
        "train.py", "model=llama7b", "lora=r64", "loss=format_b", "model.load_kbit=4", "billm=all",
        f"model.name_or_path={folder}", "data=files", "data.train.name_or_path=rows.jsonl", "train.batch_size=2",
        "train.dry_run=true",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert snapshot(tmp_path) == before
    assert "both directions from layer 0, trained on 4-bit weights" in done.stdout
    assert "longest batch: 2 rows, 6 different texts" in done.stdout
    for part in ("frozen weights", "trained weights", "gradients", "optimiser state", "activations", "time of a step"):
        assert part in done.stdout
    assert "Nothing was written." in done.stdout


@pytest.mark.slow
def test_documented_llama_command_composes(command: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    words = ("model=llama7b", "lora=r64", "loss=format_b", "model.load_kbit=4", "billm=all")
    done = command("train.py", *words, "--cfg", "job")
    assert done.returncode == 0, done.stderr
    for line in (
        "name_or_path: NousResearch/Llama-2-7b-chat-hf", "load_kbit: 4", "gradient_checkpointing: true", "r: 64",
        "alpha: 128", "ibn_w: 20.0", "cosine_w: 0.0", "name: B", "billm:\n  enabled: true",
    ):  # fmt: skip
        assert line in done.stdout
