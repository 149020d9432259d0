"""A model that cannot be right is refused in one sentence by the real command, and nothing existing changes."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import WORDS, snapshot, start, write_jsonl
from safetensors.torch import load_file, save_file

#: Seconds that a refusal may take: of a command that starts at once, on a machine that runs other tests too.
SECONDS = 30
TEXTS = ("a fox", "the owl", "red moon", "green moon", "a word", "the query", "sleep", "in the moon")
PAIRS = [{"text1": text, "text2": TEXTS[number - 1], "label": number % 3} for number, text in enumerate(TEXTS)]
ROWS = ("data=files", "data.train.name_or_path=rows.jsonl")
TRAIN = (
    "train.py",
    "model.name_or_path=model",
    *ROWS,
    "train.max_steps=1",
)
EVALUATE = ("evaluate.py", "tasks=[rows.jsonl]", "output_dir=scores")
CONVERT = ("convert.py", "output_dir=converted")


@dataclass(frozen=True)
class Case:
    """A change to a folder that holds a model, rows and a run with an adapter, and what a command says about it."""

    change: Callable[[Path], object]
    text: str
    """The message after "Error: "."""
    words: tuple[str, ...] = TRAIN


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, rows, and an adapter that was trained on the model."""
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("good")
    settings = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8, "max_position_embeddings": 16}
    BertModel(BertConfig(vocab_size=len(WORDS), hidden_size=32, **settings)).save_pretrained(folder / "model")
    BertTokenizer(vocab={word: number for number, word in enumerate(WORDS)}).save_pretrained(folder / "model")
    write_jsonl(folder / "rows.jsonl", PAIRS)
    done = start(*TRAIN, "lora=r8", "train.output_dir=run", folder=folder)
    assert done.returncode == 0, done.stderr
    return folder


def change_weights(folder: Path, change: Callable[[dict[str, Any]], object], name: str = "model.safetensors") -> None:
    """Change the weights in a folder."""
    weights = load_file(folder / name)
    change(weights)
    save_file(weights, folder / name, {"format": "pt"})


def scale_one(folder: Path) -> None:
    """Change one matrix of the model."""
    change_weights(folder / "model", lambda weights: weights["encoder.layer.0.output.dense.weight"].mul_(2))


def unfinish(folder: Path) -> None:
    """Make the run look as if it had been killed after its first checkpoint, and change the model."""
    record = json.loads((folder / "run" / "run.json").read_text())
    (folder / "run" / "run.json").write_text(json.dumps(record | {"finished": False}))
    scale_one(folder)


def nothing(_: Path) -> None:
    """Change nothing: it is the command that cannot work."""


def another_language(folder: Path) -> None:
    """Write most words in a language that the vocabulary does not know."""
    write_jsonl(folder / "rows.jsonl", [row | {"text2": "\u732b " * (2 + number)} for number, row in enumerate(PAIRS)])


def remove(*names: str) -> Callable[[Path], None]:
    """Return a change that removes files."""
    return lambda folder: [(folder / name).unlink() for name in names] and None


NO_WORDS = (
    "BertTokenizer has a vocabulary of 5 tokens, with none of which a text can be written; transformers makes up such "
    "a one where a folder has no tokenizer.json: copy the tokenizer's files there, or give its folder by "
    "model.tokenizer_name_or_path=..."
)
OTHER_BASE = (
    "run/final was trained on other weights than those that are in FOLDER/model now, so its embeddings would be "
    "others (fingerprint HASH, in training HASH): put the old weights back, or, to use it on these all the same, "
    "remove base_fingerprint from its angle_config.json."
)
CASES = {
    "evaluate an adapter whose base has changed": Case(scale_one, OTHER_BASE, (*EVALUATE, "model.name_or_path=run")),
    "convert an adapter whose base has changed": Case(scale_one, OTHER_BASE, (*CONVERT, "model.name_or_path=run")),
    "train an adapter further whose base has changed": Case(
        scale_one,
        OTHER_BASE.replace("FOLDER/model", "model"),
        (*TRAIN, "model.adapter=run"),
    ),
    "train without a tokenizer": Case(remove("model/tokenizer.json"), NO_WORDS),
    "evaluate without a tokenizer": Case(
        remove("model/tokenizer.json"), NO_WORDS, (*EVALUATE, "model.name_or_path=model")
    ),
    "convert without a tokenizer": Case(
        remove("model/tokenizer.json", "model/tokenizer_config.json"),
        NO_WORDS,
        (*CONVERT, "model.name_or_path=model"),
    ),
    "evaluate a finished run that has lost its tokenizer": Case(
        remove("run/final/tokenizer.json"), NO_WORDS, (*EVALUATE, "model.name_or_path=run")
    ),
    "train on texts of another language": Case(
        another_language,
        "data.train is not in the model's language: 73% of its tokens are unknown to the tokenizer, and at most 50% "
        "may be; choose another model, or the right tokenizer by model.tokenizer_name_or_path=...",
    ),
    "evaluate on texts of another language": Case(
        another_language,
        "tasks: rows.jsonl is not in the model's language: 73% of its tokens are unknown to the tokenizer, and at most "
        "50% may be; choose another model, or the right tokenizer by model.tokenizer_name_or_path=...",
        (*EVALUATE, "model.name_or_path=model"),
    ),
    "no room for a text": Case(
        nothing,
        "model.max_length=2 leaves no room for a text: the tokens around every text take 2 tokens; raise "
        "model.max_length.",
        (*TRAIN, "model.max_length=2"),
    ),
    "no room for a text by the saved settings": Case(
        lambda folder: (folder / "model" / "angle_config.json").write_text('{"max_length": 1}'),
        "model.max_length=1 leaves no room for a text: the tokens around every text take 2 tokens; raise "
        "model.max_length.",
    ),
    "resume a run whose base has changed": Case(
        unfinish,
        "The weights of model.name_or_path=FOLDER/model have changed since the run in run was started, so going on "
        "would mix two models: put the old ones back, or start a new run with another train.output_dir.",
        ("train.py", "train.resume=run"),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_bad_model_is_a_one_line_error_and_changes_nothing(name: str, good: Path, tmp_path: Path) -> None:
    case = CASES[name]
    folder = shutil.copytree(good, tmp_path / "good")
    for path in (folder / "run" / "config.yaml", folder / "run" / "final" / "adapter_config.json"):
        path.write_text(path.read_text().replace(str(good), str(folder)))
    case.change(folder)
    before = snapshot(folder)
    started = time.monotonic()
    done = start(*case.words, folder=folder)
    assert time.monotonic() - started < SECONDS
    assert masked(done.stderr, folder, good) == f"Error: {case.text}\n"
    assert (done.stdout, done.returncode) == ("", 1)
    assert snapshot(folder) == before


def masked(text: str, *folders: Path) -> str:
    """Return a message without what differs between runs of the tests."""
    for folder in folders:
        text = text.replace(str(folder), "FOLDER")
    return re.sub(r"\b[0-9a-f]{12}\b", "HASH", text)


@pytest.mark.slow
@pytest.mark.parametrize("words", [TRAIN, (*EVALUATE, "model.name_or_path=model")])
def test_texts_that_are_partly_unknown_are_noted(words: tuple[str, ...], good: Path, tmp_path: Path) -> None:
    shutil.copytree(good / "model", tmp_path / "model")
    write_jsonl(tmp_path / "rows.jsonl", [row | {"text2": f"{row['text2']} \u732b"} for row in PAIRS])
    done = start(*words, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    name = "data.train" if words is TRAIN else "rows.jsonl"
    assert f"note    20% of the tokens of {name} are unknown to the tokenizer" in done.stdout + done.stderr
