"""The commands and the code in README.md and docs/, and a folder in which all of it runs in seconds.

A command runs as it is written: the folder has small models and data sets under the names that the documentation uses,
and settings are appended only to make few steps. A page's commands run in order, in a folder of the page's own.
"""

from __future__ import annotations

import csv
import re
import shlex
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from conftest import REPO, made_once, sample_rows, start, write_jsonl
from retrieval_sets import random_set

from angle.data.retrieval_files import NANO_BEIR, NANO_BEIR_OWNER
from angle.evaluation.tasks import HUB_TASKS
from angle.modeling.tiny import tiny_tokenizer

PAGES = [REPO / "README.md", REPO / "CONTRIBUTING.md", *sorted((REPO / "docs").glob("*.md"))]
PAGES += [REPO / "benchmarks" / "RESULTS.md"]
SCRIPTS = ("train.py", "evaluate.py", "convert.py")
#: Programs that no test of documentation starts: how their line begins, and why.
ELSEWHERE = {
    "bash .ci/run": "runs all tests",
    "conda env create": "downloads; tests/test_promises.py compares environment.yml with pyproject.toml",
    "eval": "changes the shell that it is typed in",
    "hf auth login": "asks for a token",
    "optuna-dashboard": "serves until it is ended",
    "pip install": "downloads; .ci/run installs",
    "pytest": "runs all tests",
    "python -m benchmarks.": "measures for minutes; tests/benchmarks run the parts",
    "sphinx-build": "is run by .ci/run",
    "tensorboard": "serves until it is ended",
    "wandb": "sends to a server",
}
#: What cannot run here, or is run by another test: a part of the line (or of the Python block), and why. Such lines are
#: composed and checked, and such blocks compiled.
NOT_RUN = {
    "fsdp2_lora.yaml": "tests/training/test_sharded.py trains by this file",
    "hub.push=true": "tests/export/test_hub.py pushes to a server of its own",
    "launcher=joblib": "starts processes of its own; tests/cli/test_launchers.py runs it",
    "launcher=submitit_slurm": "needs a cluster; tests/cli/test_launchers.py runs the plug-in's local executor",
    "suite=mteb": "reads data from the hub; tests/evaluation/test_mteb_suite.py measures through mteb",
    "onnx=": "exports for ten seconds; tests/export/test_onnx.py runs it",
    "small.gguf": "tests/modeling/test_gguf.py writes and trains such a file",
}
#: Models of the documentation that no preset names; the second is an adapter on the first.
OTHER_DECODERS = ("NousResearch/Llama-2-7b-hf",)
OTHER_ADAPTERS = {"SeanLee97/angle-llama-7b-nli-v2": "NousResearch/Llama-2-7b-hf"}
#: Folders that pages call their own results, unless a command of the page makes them.
RUNS, SWEEPS = ("RUN", "OTHER", "THIRD"), ("SWEEP",)


class Command(NamedTuple):
    """A line of a bash block."""

    page: str
    line: str
    """As it is written."""
    env: dict[str, str]
    launcher: tuple[str, ...]
    """The words of `accelerate launch` or `torchrun`, before the program."""
    program: str
    """A script, or a module behind -m; "" for a program that is not of this project."""
    words: tuple[str, ...]

    @property
    def reason_not_to_run(self) -> str | None:
        """Why no test of documentation runs it; None: one does."""
        if not self.program:
            return next((reason for start, reason in ELSEWHERE.items() if self.line.startswith(start)), None)
        return next((reason for part, reason in NOT_RUN.items() if part in self.line), None)


def blocks_of(page: Path, language: str) -> list[str]:
    """Return the fenced blocks of a language in a page."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands_of(page: Path) -> Iterator[Command]:
    """Yield the commands of a page's bash blocks, in order."""
    for block in blocks_of(page, "bash"):
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            for words in _split(shlex.split(line, comments=True)):
                yield _parsed(str(page.relative_to(REPO)), words)


def inline_commands_of(page: Path) -> Iterator[Command]:
    """Yield the commands that stand in a page's sentences and tables, whole ones alone."""
    for line in re.findall(r"`(python \w+\.py [^`]+)`", page.read_text(encoding="utf-8")):
        if "..." not in line and line.split()[1] in SCRIPTS:
            yield _parsed(str(page.relative_to(REPO)), shlex.split(line))


def presets_of(page: Path) -> dict[str, str]:
    """Return the presets that a page writes out, by their paths: yaml blocks behind a sentence that names the file."""
    text = page.read_text(encoding="utf-8")
    found = re.findall(
        r"`(conf/\w+/\w+\.yaml)`[^`]*(?:`[^`\n]+`[^`]*)*\n\n```yaml\n(.*?)^```", text, re.DOTALL | re.MULTILINE
    )
    return dict(found)


def clone_for(page: Path, folder: Path) -> Path:
    """Make a folder as a clone of this repository is, with the presets that a page writes out."""
    shutil.copytree(REPO / "conf", folder / "conf")
    for name in SCRIPTS:
        shutil.copy(REPO / name, folder)
    (folder / "angle").symlink_to(REPO / "angle")
    for name, text in presets_of(page).items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def _split(words: list[str]) -> Iterator[list[str]]:
    """Yield the commands between the && of a line."""
    while words:
        end = words.index("&&") if "&&" in words else len(words)
        yield words[:end]
        words = words[end + 1 :]


def _parsed(page: str, words: list[str]) -> Command:
    line = shlex.join(words)
    env: dict[str, str] = {}
    while words and (assigned := re.fullmatch(r"([A-Za-z_]\w*)=(.*)", words[0])):
        env[assigned[1]] = assigned[2]
        words = words[1:]
    if words[:1] == ["angle-trainer"]:
        words = ["python", "-m", "angle.compat.angle_trainer", *words[1:]]
    for place, word in enumerate(words):
        if word in SCRIPTS:
            return Command(page, line, env, _launcher(words[:place]), word, tuple(words[place + 1 :]))
        if word == "-m" and words[place + 1].startswith("angle."):
            return Command(page, line, env, _launcher(words[:place]), words[place + 1], tuple(words[place + 2 :]))
    return Command(page, line, env, (), "", ())


def _launcher(words: list[str]) -> tuple[str, ...]:
    return () if words == ["python"] else tuple(words)


def few_steps(command: Command) -> list[str]:
    """Return the words of a command, with what makes it short appended: it has two steps, and a sweep two jobs."""
    words = list(command.words)
    if command.program == "angle.compat.angle_trainer" or command.program == "angle.angle_trainer":
        return [*words, "--max_steps", "2"]
    if command.program != "train.py" or any(word.startswith("train.resume=") for word in words):
        return words
    several = 2
    for place, word in enumerate(words if "-m" in words else ()):
        key, _, values = word.partition("=")
        if "(" not in word and re.fullmatch(r"[^\[{'\"]+,[^\[{'\"]+", values):
            words[place], several = f"{key}={','.join(values.split(',')[:several])}", 1
    words += ["train.max_steps=2"]
    return [*words, "hparams.trials=2"] if {"hparams=optuna", "hparams=quick"} & {*words} else words


def world(paths: Any) -> Path:
    """Return a folder with everything that the documentation names, made once for all tests."""
    return made_once(paths, "documented", _make_world)


def page_folder(folder: Path, everything: Path, commands: Iterable[Command]) -> Path:
    """Fill a clone with what a page's commands need, without the results that they make themselves."""
    made = {word.partition("=")[2] for command in commands for word in command.words if "_dir=" in word}
    made |= {word.partition("=")[2] for command in commands for word in command.words if "sweep.dir=" in word}
    for path in everything.iterdir():
        if path.name in (*RUNS, *SWEEPS):
            if path.name not in made:
                shutil.copytree(path, folder / path.name)
        else:
            (folder / path.name).symlink_to(path)
    return folder


def _make_world(folder: Path) -> None:
    for path in sorted((REPO / "conf" / "model").glob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        name = yaml.safe_load(text)["name_or_path"]
        if name != "tiny":
            _make_model(folder / name, is_decoder="Decoder" in text.splitlines()[0])
    for name in OTHER_DECODERS:
        _make_model(folder / name, is_decoder=True)
    for name, base in OTHER_ADAPTERS.items():
        _make_adapter(folder, name, base)
    for path in sorted((REPO / "conf" / "data").glob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        settings = yaml.safe_load(text)
        for role, source in settings.get("data", settings).items():
            if source["name_or_path"] not in (None, "sample", *HUB_TASKS.values()):
                data_format = re.findall(r"format ([ABC])", text)[0] if role == "train" else "A"
                _make_data_set(folder / source["name_or_path"], data_format, {})
    for name in HUB_TASKS.values():
        _make_data_set(folder / name, "A", {"text1": "sentence1", "text2": "sentence2", "label": "score"})
    for name in NANO_BEIR:
        random_set(folder / NANO_BEIR_OWNER / name, 4, 30, split="train")
    for split in ("dev", "test"):
        random_set(folder / "questions", split=split)
    write_jsonl(folder / "pairs_c.jsonl", sample_rows("C", "train", 64))
    for name, split in {"pairs": "train", "dev": "validation", "test": "test"}.items():
        write_jsonl(folder / f"{name}.jsonl", sample_rows("A", split, 64))
    write_jsonl(folder / "triples.jsonl", sample_rows("B", "train", 64))
    write_jsonl(folder / "corpus.jsonl", [{"text": row["positive"]} for row in sample_rows("C", "train", 64)])
    with (folder / "nli.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("premise", "hypothesis", "gold"))
        for number, row in enumerate(sample_rows("A", "train", 48)):
            table.writerow((row["text1"], row["text2"], ("entailment", "contradiction", "neutral")[number % 3]))
    words = ("entailment", "contradiction", "neutral")
    named = [row | {"label": words[number % 3]} for number, row in enumerate(sample_rows("A", "train", 48))]
    write_jsonl(folder / "nli-pairs.jsonl", named)
    with (folder / "pairs.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("first", "second", "label"))
        table.writerows((row["text1"], row["text2"], row["label"]) for row in sample_rows("A", "train", 48))
    run = ["model=minilm", "data=stsb", "train.max_steps=2", "train.output_dir=RUN"]
    _succeed(start("train.py", *run, folder=folder))
    for name in RUNS[1:]:
        shutil.copytree(folder / "RUN", folder / name)
    sweep = ["-m", "model=minilm", "data=stsb", "train.max_steps=2", "loss.ibn_w=1,2", f"hydra.sweep.dir={SWEEPS[0]}"]
    _succeed(start("train.py", *sweep, folder=folder))


def _succeed(done: Any) -> None:
    assert done.returncode == 0, done.stderr[-3000:]


def _make_model(folder: Path, *, is_decoder: bool) -> None:
    """Write a small model with as many layers as the documentation counts, and the built-in sentences' words."""
    from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

    tokenizer = tiny_tokenizer()
    sizes: dict[str, Any] = {"vocab_size": len(tokenizer), "num_attention_heads": 4, "max_position_embeddings": 512}
    torch.manual_seed(0)
    if is_decoder:
        layers = 16 if "SmolLM2" in folder.name else 4  # documented with its upper half, from layer 15 on
        model = LlamaForCausalLM(LlamaConfig(hidden_size=64, intermediate_size=64, num_hidden_layers=layers, **sizes))
    else:
        model = BertModel(BertConfig(hidden_size=128, intermediate_size=128, num_hidden_layers=6, **sizes))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _make_adapter(folder: Path, name: str, base: str) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    adapter = LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    get_peft_model(LlamaForCausalLM.from_pretrained(folder / base), adapter).save_pretrained(folder / name)


def _make_data_set(folder: Path, data_format: str, columns: dict[str, str]) -> None:
    from datasets import Dataset, DatasetDict

    splits = {split: sample_rows(data_format, split, 40) for split in ("train", "validation", "test")}
    renamed = {
        split: Dataset.from_list([{columns.get(key, key): value for key, value in row.items()} for row in rows])
        for split, rows in splits.items()
    }
    DatasetDict(renamed).save_to_disk(folder)
