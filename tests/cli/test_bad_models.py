"""A model that cannot be right is refused in one sentence by the real command, and nothing existing changes."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import WORDS, bounded, snapshot, start, start_here, write_jsonl
from safetensors.torch import load_file, save_file

from angle.files import MANIFEST
from angle.training.run_folder import RunFolder

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
    forked: bool = False
    """Whether the command is also tried as a process of its own: one of each kind is."""


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, rows, and a run that put an adapter on the model, moved from where `folder` will be."""
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("models") / "good"
    folder.mkdir()
    settings = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8, "max_position_embeddings": 16}
    BertModel(BertConfig(vocab_size=len(WORDS), hidden_size=32, **settings)).save_pretrained(folder / "model")
    BertTokenizer(vocab={word: number for number, word in enumerate(WORDS)}).save_pretrained(folder / "model")
    write_jsonl(folder / "rows.jsonl", PAIRS)
    done = start(*TRAIN, "lora=r8", "train.output_dir=run", folder=folder)
    assert done.returncode == 0, done.stderr
    (folder / "run" / "final" / MANIFEST).unlink()  # with checksums, whatever is wrong in it would be damage
    return folder.rename(folder.with_name("kept"))


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
    RunFolder(folder / "run").update(finished=False)
    scale_one(folder)


def nothing(_: Path) -> None:
    """Change nothing: it is the command that cannot work."""


def another_language(folder: Path) -> None:
    """Write most words in a language that the vocabulary does not know."""
    write_jsonl(folder / "rows.jsonl", [row | {"text2": "\u732b " * (2 + number)} for number, row in enumerate(PAIRS)])


def remove(*names: str) -> Callable[[Path], None]:
    """Return a change that removes files."""
    return lambda folder: [(folder / name).unlink() for name in names] and None


def edit(name: str, **entries: Any) -> Callable[[Path], None]:
    """Return a change of entries in a JSON file."""

    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | entries))

    return change


def write(name: str, text: str) -> Callable[[Path], None]:
    """Return a change that writes a file."""

    def change(folder: Path) -> None:
        (folder / name).write_text(text)

    return change


def edit_weight(edit_one: Callable[[Any], Any]) -> Callable[[Path], None]:
    """Return a change of one of the model's matrices."""

    def change(folder: Path) -> None:
        change_weights(folder / "model", lambda weights: weights.update({MATRIX: edit_one(weights[MATRIX])}))

    return change


def with_a_nan(weight: Any) -> Any:
    """Return the weight with one value that is no number."""
    weight[1, 2] = float("nan")
    return weight


def edit_adapter(change_one: Callable[[Any], Any]) -> Callable[[Path], None]:
    """Return a change of one of the adapter's matrices."""

    def change(folder: Path) -> None:
        name = "adapter_model.safetensors"
        first = min(load_file(folder / "run" / "final" / name))
        change_weights(
            folder / "run" / "final", lambda weights: weights.update({first: change_one(weights[first])}), name
        )

    return change


def edit_tokenizer(**entries: Any) -> Callable[[Path], None]:
    """Return a change of rules of the tokenizer, which is then used as its file says, and of a text to try them on."""

    def change(folder: Path) -> None:
        edit("model/tokenizer.json", **entries)(folder)
        edit(SETTINGS, tokenizer_class="PreTrainedTokenizerFast")(folder)
        write_jsonl(folder / "rows.jsonl", [PAIRS[0] | {"text1": "a" * 60 + "!"}, *PAIRS[1:]])

    return change


def become_pipe(name: str) -> Callable[[Path], None]:
    """Return a change of a file into a pipe, whose reader waits for ever."""

    def change(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return change


def as_bin(change_one: Callable[[Any], Any]) -> Callable[[Path], None]:
    """Return a change of the model into one in torch's own format, with one matrix changed."""

    def change(folder: Path) -> None:
        import torch

        weights = load_file(folder / "model" / "model.safetensors")
        (folder / "model" / "model.safetensors").unlink()
        torch.save(weights | {MATRIX: change_one(weights[MATRIX])}, folder / "model" / "pytorch_model.bin")

    return change


def zero(word: str) -> Callable[[Path], None]:
    """Return a change of all weights with a word in their name to zeros."""
    return lambda folder: change_weights(
        folder / "model", lambda weights: [weight.zero_() for key, weight in weights.items() if word in key]
    )


def text_for_adapter(folder: Path) -> None:
    """Put a text in the place of the adapter's weights."""
    (folder / "run" / "final" / "adapter_model.safetensors").unlink()
    (folder / "run" / "final" / "adapter_model.bin").write_text("hello")


def pickled_code(folder: Path) -> None:
    """Put a pickle of more than weights in the place of the model's weights."""
    import torch

    (folder / "model" / "model.safetensors").unlink()
    torch.save({MATRIX: Path("code")}, folder / "model" / "pytorch_model.bin")


def not_loaded(reason: str) -> str:
    """Return what is said of a model that transformers cannot load."""
    return (
        f"model.name_or_path=model could not be loaded: {reason}. Give a hub name or a folder with config.json and "
        f"model.safetensors."
    )


def no_tokenizer(reason: str) -> str:
    """Return what is said of a tokenizer that transformers cannot load."""
    return f"No tokenizer could be loaded from model: {reason}. Give one by model.tokenizer_name_or_path=..."


def impossible(entry: str) -> str:
    """Return what is said of an entry in config.json that cannot be of the model's weights."""
    return (
        f"config.json of model says {entry}, which no model with these weights can have: copy or download the model "
        f"again."
    )


MATRIX = "encoder.layer.0.output.dense.weight"
INTEGERS = (
    f"The weights of model are integers, {MATRIX} (I32) for one, but its config.json has no quantization_config that "
    f"says what they stand for: give the model in float32, bfloat16 or float16."
)
NO_OBJECT = "{} of model holds no JSON object, which it must: copy or download it again."
NO_MODULES = (
    "modules.json of model must hold a list of modules, each with a type and a path: copy or download the model again."
)
MANY_TOKENS = (
    "The tokenizer of model adds 100,000 tokens to its vocabulary, and at most 50,000 are loaded in seconds: make them "
    "part of the vocabulary itself, or give another tokenizer by model.tokenizer_name_or_path=..."
)
CONFIG, SETTINGS = "model/config.json", "model/tokenizer_config.json"
NO_WORDS = (
    "BertTokenizer has a vocabulary of 5 tokens, with none of which a text can be written; transformers makes up such "
    "a one where a folder has no tokenizer.json: copy the tokenizer's files there, or give its folder by "
    "model.tokenizer_name_or_path=..."
)
OTHER_BASE = (
    "run/final was trained on other weights than those that are in FOLDER/model now, so its embeddings would be "
    "others (fingerprint HASH, in training HASH): put the old weights back, or, to use it on these all the same, "
    "remove base_fingerprint from its angle_config.json, and its manifest.json."
)
ADAPTER = "run/final/adapter_config.json"
USE_RUN = (*EVALUATE, "model.name_or_path=run")
DOUBLED = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
TOKEN, TEXT = {"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
BEFORE_TEXTS = {
    "type": "TemplateProcessing",
    "single": [TOKEN] * 100_000 + [TEXT],
    "pair": [TEXT, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]}},
}
LONGER = (
    "The {} in tokenizer.json of model makes a text up to {} times as long, and at most 10,000 times is loaded: give "
    "another tokenizer by model.tokenizer_name_or_path=..."
)


def expression(regex: str) -> dict[str, Any]:
    """Return a rule of a tokenizer that splits texts by an expression."""
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def unreadable(reason: str) -> str:
    """Return what is said of an adapter that cannot be loaded."""
    return f"model.name_or_path=run/final could not be read: {reason}"


CASES = {
    "evaluate an adapter whose base has changed": Case(
        scale_one, OTHER_BASE, (*EVALUATE, "model.name_or_path=run"), forked=True
    ),
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
        forked=True,
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
    "a weight that is no number": Case(
        edit_weight(with_a_nan),
        f"The weights of model are damaged: {MATRIX} has values that are no finite numbers; copy or download the model "
        f"again.",
    ),
    "weights that are integers": Case(edit_weight(lambda weight: weight.int()), INTEGERS),
    "evaluate weights that are integers": Case(
        edit_weight(lambda weight: weight.int()), INTEGERS, (*EVALUATE, "model.name_or_path=model")
    ),
    "fewer layers than the weights": Case(
        edit(CONFIG, num_hidden_layers=1),
        "model.name_or_path=model does not fit its config.json, which leaves out layers that it has weights for, "
        "encoder.layer.1.attention.output.LayerNorm.bias for one: correct num_hidden_layers there, and cut layers off "
        "by model.layers=...",
    ),
    "no layers": Case(edit(CONFIG, num_hidden_layers=0), impossible("num_hidden_layers=0")),
    "a million layers": Case(
        edit(CONFIG, num_hidden_layers=10**6), impossible("num_hidden_layers=1,000,000"), forked=True
    ),
    "a vocabulary of a billion": Case(edit(CONFIG, vocab_size=10**9), impossible("vocab_size=1,000,000,000")),
    "states of a billion": Case(edit(CONFIG, hidden_size=10**9), impossible("hidden_size=1,000,000,000")),
    "a negative vocabulary": Case(edit(CONFIG, vocab_size=-1), impossible("vocab_size=-1")),
    "a billion positions": Case(
        edit(CONFIG, max_position_embeddings=10**9),
        impossible("max_position_embeddings=1,000,000,000"),
    ),
    "layers in words": Case(
        edit(CONFIG, num_hidden_layers="two"),
        not_loaded(
            "Validation error for field 'num_hidden_layers': TypeError: Field 'num_hidden_layers' expected int, got "
            "str (value: 'two')"
        ),
    ),
    "no attention heads": Case(edit(CONFIG, num_attention_heads=0), not_loaded("integer modulo by zero")),
    "a padding token beyond the vocabulary": Case(
        edit(CONFIG, pad_token_id=99), not_loaded("Padding_idx must be within num_embeddings")
    ),
    "an activation that does not exist": Case(
        edit(CONFIG, hidden_act="nope"), not_loaded("'nope' is missing or not known")
    ),
    "a configuration that is a number": Case(write(CONFIG, "3"), NO_OBJECT.format("config.json")),
    "a configuration that is cut off": Case(
        write(CONFIG, "{"),
        "config.json of model is not valid JSON: Expecting property name enclosed in double quotes: line 1 column 2 "
        "(char 1).",
    ),
    "a configuration of brackets": Case(
        write(CONFIG, "[" * 100_000),
        "config.json of model is not valid JSON: maximum recursion depth exceeded while decoding a JSON array from a "
        "unicode string.",
    ),
    "weights that are cut off": Case(
        write("model/model.safetensors", "x" * 99),
        "model.safetensors of model is damaged: Error while deserializing header: header too large; copy or download "
        "the model again.",
    ),
    "weights with code": Case(
        pickled_code, not_loaded("its .bin file holds more than weights, which is not run here"), forked=True
    ),
    "settings of a tokenizer that are a list": Case(write(SETTINGS, "[]"), NO_OBJECT.format("tokenizer_config.json")),
    "padding in the middle": Case(
        edit(SETTINGS, padding_side="middle"),
        no_tokenizer("Padding side should be selected between 'right' and 'left', current value: middle"),
    ),
    "a maximum length in words": Case(
        edit(SETTINGS, model_max_length="x"),
        no_tokenizer("'>' not supported between instances of 'int' and 'str'"),
    ),
    "a tokenizer that is empty": Case(
        write("model/tokenizer.json", "{}"), no_tokenizer("'added_tokens' is missing or not known")
    ),
    "many added tokens": Case(
        edit("model/added_tokens.json", **{f"word{number}": number for number in range(10**5)}),
        MANY_TOKENS,
        forked=True,
    ),
    "modules that are no list": Case(write("model/modules.json", "{}"), NO_MODULES),
    "modules without a type": Case(write("model/modules.json", '[{"path": ""}]'), NO_MODULES),
    "pooling by a token before the first": Case(
        write("model/angle_config.json", '{"pooling": -1}'),
        "model uses pooling -1, which is not supported: type pooling.strategy=... to choose another.",
    ),
    "an adapter for no model": Case(
        write("model/adapter_config.json", "{}"),
        "adapter_config.json of model does not say which model the adapter was made for: give that as "
        "model.name_or_path and the adapter as model.adapter=model.",
    ),
    "an adapter of an unknown type": Case(
        edit("run/final/adapter_config.json", peft_type="NOPE"),
        "model.name_or_path=run/final could not be read: 'NOPE' is missing or not known.",
        (*EVALUATE, "model.name_or_path=run"),
    ),
    "a tokenizer's expression that tries for ever": Case(
        edit_tokenizer(pre_tokenizer=expression("(a+)+$")),
        "data.train: The tokenizer of model fails on a text (Onig: Regex search error: retry-limit-in-match over): "
        "give another by model.tokenizer_name_or_path=...",
    ),
    "evaluate with such an expression": Case(
        edit_tokenizer(normalizer=expression("(a+)+$") | {"type": "Replace", "content": "b"}),
        "tasks: The tokenizer of model fails on a text (Onig: Regex search error: retry-limit-in-match over): give "
        "another by model.tokenizer_name_or_path=...",
        (*EVALUATE, "model.name_or_path=model"),
    ),
    "a tokenizer that doubles texts 40 times": Case(
        edit_tokenizer(normalizer={"type": "Sequence", "normalizers": [DOUBLED] * 40}),
        LONGER.format("normalizer", "1,099,511,627,776"),
        forked=True,
    ),
    "a tokenizer that puts 100,000 tokens before a text": Case(
        edit_tokenizer(post_processor=BEFORE_TEXTS), LONGER.format("post_processor", "100,001")
    ),
    "a tokenizer with a table of another size": Case(
        edit_tokenizer(normalizer={"type": "Precompiled", "precompiled_charsmap": "/////w=="}),
        "tokenizer.json of model is damaged: its precompiled_charsmap is no table of characters; copy or download it "
        "again.",
    ),
    "all weights zero": Case(
        zero(""),
        "The weights of model are damaged: 16 of its 16 matrices, embeddings.word_embeddings.weight for one, are all "
        "zeros; copy or download the model again.",
    ),
    "norms zero": Case(
        zero("LayerNorm"),
        "model.name_or_path=model cannot work: BertModel gives every text the same states, as if its weights were "
        "lost; choose an encoder such as bert_base or a decoder such as qwen3_0.6b.",
    ),
    "complex weights": Case(
        edit_weight(lambda weight: weight * 1j), INTEGERS.replace("integers", "complex numbers").replace("I32", "C64")
    ),
    "integers in torch's format": Case(as_bin(lambda weight: weight.int()), INTEGERS),
    "a configuration with NaN": Case(
        edit(CONFIG, attention_probs_dropout_prob=float("nan")),
        "config.json of model is not valid JSON: it has the value NaN.",
    ),
    "an adapter's expression that is tried for ever": Case(
        edit(ADAPTER, target_modules="([a-z.0-9]+)+!"),
        "model.name_or_path=run/final cannot be used: matching its expressions, such as '([a-z.0-9]+)+!', with the "
        "names of layers does not end; list the layers' names as target_modules in its adapter_config.json instead.",
        USE_RUN,
    ),
    "an adapter's expression in a key": Case(
        edit(ADAPTER, alpha_pattern={"([a-z.0-9]+)+!": 4}),
        "model.name_or_path=run/final cannot be used: matching its expressions, such as "
        "'(.*\\\\.)?(([a-z.0-9]+)+!)(\\\\..*)?', with the names of layers does not end; list the layers' names as "
        "target_modules in its adapter_config.json instead.",
        USE_RUN,
    ),
    "an adapter of rank a billion": Case(
        edit(ADAPTER, r=10**9),
        unreadable("its adapter_config.json has the rank 1,000,000,000, but its weights have not."),
        USE_RUN,
    ),
    "an adapter with alpha 0": Case(
        edit(ADAPTER, lora_alpha=0), unreadable("lora_alpha=0 is no number above 0."), USE_RUN
    ),
    "an adapter with a number for a pattern": Case(
        edit(ADAPTER, rank_pattern=5), unreadable("rank_pattern=5 has the wrong type."), USE_RUN
    ),
    "an adapter that is no number": Case(
        edit_adapter(with_a_nan),
        "The weights of model.name_or_path=run/final are damaged: "
        "base_model.model.encoder.layer.0.attention.output.dense.lora_A.weight has values that are no finite numbers, "
        "or integers; copy or download the adapter again.",
        (*CONVERT, "model.name_or_path=run"),
    ),
    "an adapter that is a pipe": Case(
        become_pipe("run/final/adapter_model.safetensors"),
        unreadable("adapter_model.safetensors is no file."),
        USE_RUN,
    ),
    "an adapter that is a text": Case(text_for_adapter, unreadable("101 is missing or not known."), USE_RUN),
    "an adapter for a model with an endless name": Case(
        edit(ADAPTER, base_model_name_or_path="a" * 5000),
        "adapter_config.json of run/final does not say which model the adapter was made for: give that as "
        "model.name_or_path and the adapter as model.adapter=run/final.",
        USE_RUN,
    ),
    "a rank of ten million": Case(
        nothing,
        "lora.r=10,000,000 cannot work: the widest layer has 32 dimensions, beyond which a rank adds nothing but "
        "memory; 8 to 64 are usual.",
        (*TRAIN, "lora=r8", "lora.r=10000000"),
    ),
    "vision parts": Case(
        edit(CONFIG, vision_config={"hidden_size": 8}),
        "model.name_or_path=model has vision parts, which embeddings of texts have no use for: choose a model of its "
        "family for texts only.",
    ),
    "a project with a slash": Case(
        nothing,
        "tracking.project=team/angle cannot work: Weights & Biases takes 1 to 128 characters, and none of / \\ # ? % "
        ":; a user or team goes into tracking.entity.",
        (*TRAIN, "tracking=offline", "tracking.project=team/angle"),
    ),
    "half-precision weights as they are": Case(
        edit(CONFIG, dtype="float16"),
        "Trainable weights are float16, in which updates of a usual learning rate are lost to rounding: add lora=r16 "
        "(its weights are float32), or model.dtype=float32 with train.mixed_precision=bf16.",
        (*TRAIN, "model.dtype=auto"),
    ),
    "resume a run whose base has changed": Case(
        unfinish,
        "The weights of model.name_or_path=FOLDER/model have changed since the run in run was started, so going on "
        "would mix two models: put the old ones back, or start a new run with another train.output_dir.",
        ("train.py", "train.resume=run"),
        forked=True,
    ),
}


@pytest.fixture
def folder(kept: Path) -> Iterator[Path]:
    """A copy of the folder where it was made, so that the paths in it lead to it."""
    copy = kept.with_name("good")
    yield shutil.copytree(kept, copy)
    shutil.rmtree(copy)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_bad_model_is_a_one_line_error_and_changes_nothing(name: str, folder: Path) -> None:
    case = CASES[name]
    case.change(folder)
    before = snapshot(folder)
    with bounded():
        done = start_here(*case.words, folder=folder)
    assert masked(done.stderr, folder) == f"Error: {case.text}\n"
    assert (done.stdout, done.returncode) == ("", 1)
    assert snapshot(folder) == before


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.forked])
def test_the_command_alone_says_the_same(name: str, folder: Path) -> None:
    case = CASES[name]
    case.change(folder)
    done = start(*case.words, folder=folder)
    assert masked(done.stderr, folder) == f"Error: {case.text}\n"
    assert (done.stdout, done.returncode) == ("", 1)


def masked(text: str, folder: Path) -> str:
    """Return a message without what differs between runs of the tests."""
    return re.sub(r"\b[0-9a-f]{12}\b", "HASH", text.replace(str(folder), "FOLDER"))


@pytest.mark.slow
@pytest.mark.parametrize("words", [TRAIN, (*EVALUATE, "model.name_or_path=model")])
def test_texts_that_are_partly_unknown_are_noted(words: tuple[str, ...], kept: Path, tmp_path: Path) -> None:
    shutil.copytree(kept / "model", tmp_path / "model")
    write_jsonl(tmp_path / "rows.jsonl", [row | {"text2": f"{row['text2']} \u732b"} for row in PAIRS])
    done = start(*words, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    name = "data.train" if words is TRAIN else "rows.jsonl"
    assert f"note    20% of the tokens of {name} are unknown to the tokenizer" in done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma3", "qwen2_vl"])
def test_a_model_of_texts_and_images_is_refused(name: str, kept: Path, tmp_path: Path) -> None:
    from transformers import AutoConfig

    shutil.copytree(kept / "model", tmp_path / "model")
    shutil.copy(kept / "rows.jsonl", tmp_path)
    AutoConfig.for_model(name).save_pretrained(tmp_path / "model")  # the other files are not read
    before = snapshot(tmp_path)
    done = start(*TRAIN, folder=tmp_path)
    assert done.stderr == (
        "Error: model.name_or_path=model has vision parts, which embeddings of texts have no use for: choose a model "
        "of its family for texts only.\n"
    )
    assert (done.stdout, done.returncode) == ("", 1)
    assert snapshot(tmp_path) == before
