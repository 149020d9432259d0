"""A user's mistake ends in exactly one line that says what to do, and writes nothing.

Each case is the real command in a folder of its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from conftest import bounded, snapshot, start, start_here

PAIRS = [{"text1": f"a cat {n}", "text2": f"the dog {n}", "label": n % 5} for n in range(8)]
FORMATS = "(A: text1, text2, label; B: text, positive, negative; C: text, positive)"
FINITE = "cannot work: it must be a finite number, between 1e-38 and 3e+38 (of either sign) or 0."
LAUNCHER = "with which processes cannot find each other: unset it, or start with accelerate launch, which sets it."
UNSET = "start with accelerate launch, or unset what that sets: WORLD_SIZE, and what begins with ACCELERATE_ or FSDP_."
TRAIN = ("data=files", "data.train.name_or_path=rows.jsonl")


@dataclass(frozen=True)
class Case:
    """A command that cannot work."""

    words: tuple[str, ...]
    text: str
    """The message after "Error: "."""
    files: dict[str, str | Callable[[Path], object]] = field(default_factory=dict)
    """Files of the folder: their text, or a function that writes them."""
    env: dict[str, str] = field(default_factory=dict)
    heavy: bool = False
    """Whether it is found only once torch is imported."""


def lines(rows: list[dict[str, object]]) -> str:
    """Return rows as JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def pairs_with(changes: dict[int, dict[str, object]]) -> str:
    """Return valid pairs, some cells changed, as JSON lines."""
    return lines([row | changes.get(number, {}) for number, row in enumerate(PAIRS)])


def rows(content: str, text: str, *words: str, name: str = "rows.jsonl") -> Case:
    """Return a case of one file to train on."""
    source = ("data=files", f"data.train.name_or_path={name}")
    return Case((*source, *words), f"data.train: {name} {text}", {name: content}, heavy=True)


def odd_model(folder: Path, width: int = 33) -> None:
    """Save a small random BERT of an odd number of dimensions."""
    from transformers import BertConfig, BertModel, BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cat", "dog", "a", "the"]
    settings = {"num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    BertModel(
        BertConfig(vocab_size=len(words), hidden_size=width, max_position_embeddings=16, **settings)
    ).save_pretrained(folder)
    BertTokenizer(vocab={word: number for number, word in enumerate(words)}).save_pretrained(folder)


def even_model(folder: Path) -> None:
    """Save a small random BERT of an even number of dimensions."""
    odd_model(folder, 32)


def larger_tokenizer(folder: Path) -> None:
    """Save such a model with a tokenizer that has two more words than the model knows."""
    from transformers import AutoTokenizer

    even_model(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["owl", "fox"])
    tokenizer.save_pretrained(folder)


def other_run(folder: Path) -> None:
    """Begin a run with another seed."""
    from angle.config import TrainConfig, TrainingConfig
    from angle.training.run_folder import RunFolder

    config = TrainConfig(train=TrainingConfig(seed=7))
    RunFolder(folder).create(config, config, {"finished": False})


CASES = {
    "misspelt columns": rows(
        lines([{"sentence1": "a", "sentence2": "b", "score": 1}]),
        f"has the columns sentence1, sentence2, score, which match no format {FORMATS}. "
        f"Rename them: 'data.train.columns={{text1: sentence1, text2: sentence2, label: score}}'",
    ),
    "a missing column": rows(
        lines([{"text1": "a", "text2": "b", "label": 1}]),
        "has the columns text1, text2, label (format A), but format B needs text, positive, negative. "
        "Type loss=format_a to train on it as it is.",
        "loss=format_b",
    ),
    "a column to rename that is not there": Case(
        (*TRAIN, "+data.train.columns={text1: first}"),
        "data.train.columns names first, but rows.jsonl has: text1, text2, label.",
        {"rows.jsonl": lines(PAIRS)},
        heavy=True,
    ),
    "null": rows(pairs_with({2: {"text2": None}, 4: {"text2": None}}), "line 3: text2 is null (2 such rows)."),
    "empty": rows(pairs_with({3: {"text1": ""}}), "line 4: text1 is empty (1 such row)."),
    "whitespace": rows(pairs_with({3: {"text1": " \t"}}), "line 4: text1 is empty (1 such row)."),
    "no text": rows(pairs_with({3: {"text1": 7}}), "line 4: text1 is not a text but 7 (1 such row)."),
    "label in words": rows(
        pairs_with({1: {"label": "high"}, 2: {"label": "low"}, 5: {"label": "high"}}),
        "line 2: label is 'high', which is not a number (3 such rows); give numbers, or map names: "
        "'data.train.label_map={high: NUMBER, low: NUMBER}'.",
    ),
    "label NaN": rows(
        pairs_with({4: {"label": float("nan")}}), "line 5: label is nan, which is not a finite number (1 such row)."
    ),
    "empty file": rows("", "is empty."),
    "only a header": rows("text1,text2,label\n", "is empty: it has no row.", name="rows.csv"),
    "wrong JSON": rows(lines(PAIRS[:1]) + '{"text1": x}\n', "line 2 is not valid JSON: Expecting value (column 11)."),
    "a file that is not there": Case(
        TRAIN, "data.train: rows.jsonl does not exist; the folder you are in is FOLDER.", heavy=True
    ),
    "a hub name": Case(
        ("data=files", "data.train.name_or_path=nobody/nothing"),
        "data.train: nobody/nothing (subset none, split train) could not be loaded from the hub: Couldn't reach "
        "'nobody/nothing' on the Hub (OfflineModeIsEnabled). Check the name, the subset and the split, or give a file.",
        heavy=True,
    ),
    "a token beyond the model's table": Case(
        ("model.name_or_path=larger", *TRAIN),
        "data.train: The tokenizer writes 'fox' as number 10, counted from 0, but the model has embeddings for 9 "
        "tokens: give a tokenizer without added tokens by model.tokenizer_name_or_path, or a model whose table was "
        "made larger for them.",
        {"larger": larger_tokenizer, "rows.jsonl": pairs_with({3: {"text1": "a fox"}})},
        heavy=True,
    ),
    "typo": Case(("train.epoch=2",), "There is no setting train.epoch; did you mean train.epochs?"),
    "typo with a plus": Case(("+train.epoch=2",), "There is no setting train.epoch; did you mean train.epochs?"),
    "no option": Case(
        ("lora=r6",), "lora=r6 is not an option; did you mean r64? lora can be: none, r16, r32, r64, r8."
    ),
    "no weights": Case(
        ("loss.cosine_w=0", "loss.ibn_w=0", "loss.angle_w=0"),
        "loss.cosine_w, loss.ibn_w and loss.angle_w are all 0, so there is nothing to learn: set one of them above 0.",
    ),
    "negative weight": Case(("loss.ibn_w=-1",), "loss.ibn_w=-1 cannot work: it must be at least 0."),
    "batch of one row": Case(
        ("train.batch_size=1", *TRAIN),
        "train.batch_size=1 leaves a row no other row to be compared with: choose 2 or more, "
        "or use triples (format B).",
        {"rows.jsonl": lines(PAIRS)},
        heavy=True,
    ),
    "odd dimension": Case(
        ("model.name_or_path=odd", "loss.angle_w=1", *TRAIN),
        "loss.angle_w=1 cannot work with 33 dimensions: the angle loss splits an embedding into a real and an "
        "imaginary half; choose a model of even width or loss.angle_w=0.",
        {"odd": odd_model, "rows.jsonl": lines(PAIRS)},
        heavy=True,
    ),
    "model without weights": Case(
        ("model.name_or_path=empty", *TRAIN),
        "model.name_or_path=empty could not be loaded: Error no file named model.safetensors, or pytorch_model.bin, "
        "found in directory empty. Give a hub name or a folder with config.json and model.safetensors.",
        {"empty/config.json": '{"model_type": "bert"}', "rows.jsonl": lines(PAIRS)},
        heavy=True,
    ),
    "another run": Case(
        ("train.output_dir=run",),
        "train.output_dir=run holds a run with other settings (train.seed: 7 -> 42); to go on with its own ones type "
        "train.resume=run, else give a new folder.",
        {"run": other_run},
        heavy=True,
    ),
    "other files": Case(
        ("train.output_dir=thesis",),
        "train.output_dir=thesis holds other files and no run, so nothing is written there; give an empty "
        "or a new folder.",
        {"thesis/chapter.txt": "x"},
        heavy=True,
    ),
    "nothing to resume": Case(
        ("train.resume=thesis",),
        "train.resume=thesis is no run folder: it has no run.json.",
        {"thesis/chapter.txt": "x"},
        heavy=True,
    ),
    "fp16 on a CPU": Case(
        ("train.mixed_precision=fp16",),
        "train.mixed_precision=fp16 needs a GPU, and none is here: type train.mixed_precision=bf16 or leave it out.",
        heavy=True,
    ),
    "lora is off": Case(
        ("lora.r=3",), "lora.r=3 has no effect while lora is off: add lora=r16 or lora.enabled=true, or leave it out."
    ),
    "validation on the training rows": Case(
        ("data.valid.name_or_path=sample", "data.valid.split=train"),
        "data.valid is the training data itself, so it would measure nothing: give other rows than those of "
        "sample, for example data.valid.split=validation.",
    ),
    "stream without an end": Case(
        ("data.streaming=true",),
        "data.streaming=true needs train.max_steps, because a stream has no known length: add for example "
        "train.max_steps=1000.",
    ),
    "no data": Case(
        ("data=files",),
        "data.train.name_or_path is missing: give a file, a folder or a hub name, for example "
        "data.train.name_or_path=pairs.jsonl.",
    ),
    "token behind a text's end": Case(
        ("pooling=cls", "pooling.strategy=12", *TRAIN),
        "pooling.strategy=12 asks for token 12 (counted from 0), but 16 texts of data.train are shorter; choose a "
        "smaller number, or cls, avg or last.",
        {"rows.jsonl": lines(PAIRS)},
        heavy=True,
    ),
    "both directions in an encoder": Case(
        ("billm=all",),
        "billm.enabled=true cannot work with BertModel: an encoder attends in both directions already; type "
        "billm=none.",
        heavy=True,
    ),
    "few bits without adapters": Case(
        ("model.load_kbit=4",),
        "model.load_kbit=4 freezes the weights, so there is nothing to train: add lora=r16.",
    ),
    "low-precision weights": Case(
        ("model.dtype=bfloat16", "model.name_or_path=even", *TRAIN),
        "Trainable weights are bfloat16, in which updates of a usual learning rate are lost to rounding: add lora=r16 "
        "(its weights are float32), or model.dtype=float32 with train.mixed_precision=bf16.",
        {"even": even_model, "rows.jsonl": lines(PAIRS)},
        heavy=True,
    ),
    "no key": Case(
        ("tracking=online", *TRAIN),
        "tracking.mode=online needs a key of Weights & Biases (there is none): type wandb login once, or set "
        "WANDB_API_KEY, or record offline with WANDB_MODE=offline.",
        {"rows.jsonl": lines(PAIRS)},
        {"WANDB_MODE": "online", "WANDB_API_KEY": "", "NETRC": "/nonexistent"},
        heavy=True,
    ),
    "other settings on resume": Case(
        ("train.resume=run", "train.epochs=3"),
        "train.resume=run resumes the run with its own settings, and these would change it: train.epochs: 1 -> 3. "
        "Leave them out, or start a new run.",
        {"run": other_run},
        heavy=True,
    ),
    "NaN": Case(("loss.positive_above=nan",), f"loss.positive_above=nan {FINITE}"),
    "infinity": Case(("loss.positive_above=-inf",), f"loss.positive_above=-inf {FINITE}"),
    "a number that is 0 in float32": Case(("train.learning_rate=1e-50",), f"train.learning_rate=1e-50 {FINITE}"),
    "a number that is infinite in float32": Case(("loss.ibn_w=1e300",), f"loss.ibn_w=1e+300 {FINITE}"),
    "a number of 31 digits": Case(
        (f"train.seed={10**30}",), "train.seed cannot work with more than 18 digits: give a smaller number."
    ),
    "a number of tokens of 20 digits": Case(
        (f"train.token_budget={10**19}",),
        "train.token_budget=10000000000000000000 cannot work: give a number of tokens, such as 8192, auto for as many "
        "as fit into memory, or null for whole batches.",
    ),
    "an empty text": Case(
        ("train.output_dir=",), "train.output_dir='' is empty: leave the setting out, or give it a value."
    ),
    "a blank in a list": Case(
        ("tracking.tags=[a,' ']",), "tracking.tags=' ' is empty: leave the setting out, or give it a value."
    ),
    "a name without end": Case(
        (f"model.name_or_path={'a' * 5000}",),
        f"model.name_or_path={'a' * 60}... is too long for the name of a file, a folder or a repository.",
    ),
    "adapters nowhere": Case(
        ("lora=r8", "lora.target_modules=[]"),
        "lora.target_modules=[] adapts nothing: name layers, or leave it out for all.",
    ),
    "WORLD_SIZE in words": Case((), f"The environment has WORLD_SIZE=abc, {LAUNCHER}", env={"WORLD_SIZE": "abc"}),
    "a rank beyond the last": Case((), f"The environment has RANK=5 with WORLD_SIZE=1, {LAUNCHER}", env={"RANK": "5"}),
    "a process alone": Case(
        (),
        "accelerate cannot start with the environment that it finds (Error initializing torch.distributed using env:// "
        "rendezvous: environment variable MASTER_ADDR expected, but not set): "
        f"{UNSET}",
        env={"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"},
        heavy=True,
    ),
    "a local rank beyond the last": Case(
        (),
        f"The environment has LOCAL_RANK=7 with LOCAL_WORLD_SIZE=1, {LAUNCHER}",
        env={"LOCAL_RANK": "7", "TORCHELASTIC_ERROR_FILE": "/nonexistent/file"},
    ),
    "a flag of accelerate's": Case(
        TRAIN,
        f"accelerate cannot start with the environment that it finds (invalid truth value bogus): {UNSET}",
        {"rows.jsonl": lines(PAIRS)},
        {"ACCELERATE_USE_CPU": "bogus"},
        heavy=True,
    ),
    "a flag of sharding": Case(
        (),
        "ACCELERATE_USE_FSDP=bogus cannot work: unset it, or start with accelerate launch --config_file "
        "conf/accelerate/fsdp2_lora.yaml train.py ...",
        env={"ACCELERATE_USE_FSDP": "bogus"},
        heavy=True,
    ),
    "a key that is too short": Case(
        ("tracking=online", *TRAIN),
        "tracking.mode=online needs a key of Weights & Biases (WANDB_API_KEY invalid: API key must have 40+ "
        "characters, has 5): type wandb login once, or set WANDB_API_KEY, or record offline with WANDB_MODE=offline.",
        {"rows.jsonl": lines(PAIRS)},
        {"WANDB_MODE": "online", "WANDB_API_KEY": "short"},
        heavy=True,
    ),
    "WANDB_MODE": Case(
        TRAIN,
        "WANDB_MODE=bogus is not known. Choose one of: disabled, online, offline.",
        {"rows.jsonl": lines(PAIRS)},
        {"WANDB_MODE": "bogus"},
        heavy=True,
    ),
}


#: One of each kind is also a process of its own: before anything is imported, with files, with a model.
FORKED = ("typo", "another run", "a hub name")


def runs() -> Iterator[Any]:
    """Yield each case with how to run it: those of the environment, which libraries read and keep, as a process."""
    for name, case in CASES.items():
        slow = [pytest.mark.slow] if case.heavy or case.env else []
        yield pytest.param(name, start if case.env else start_here, marks=slow)
    yield from (pytest.param(name, start, marks=[pytest.mark.slow]) for name in FORKED)


@pytest.mark.parametrize(("name", "run"), runs())
def test_bad_input_is_a_one_line_error_and_writes_nothing(name, run, tmp_path):
    case = CASES[name]
    for file, content in case.files.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        content(tmp_path / file) if callable(content) else (tmp_path / file).write_text(content)
    before = snapshot(tmp_path)
    with bounded(seconds=20):  # the first of a process imports the libraries
        done = run("train.py", *case.words, folder=tmp_path, **case.env)
    assert done.stderr.replace(str(tmp_path), "FOLDER") == f"Error: {case.text}\n"
    assert done.stdout == ""
    assert done.returncode == 1
    assert snapshot(tmp_path) == before
