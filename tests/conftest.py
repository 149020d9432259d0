"""What several test files need: real commands in a folder of their own, small files, and a tokenizer to look into."""

from __future__ import annotations

import fcntl
import gc
import inspect
import io
import json
import os
import resource
import runpy
import shutil
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import fork_server
import numpy as np
import pytest
import torch

from angle.data import sample
from angle.structures import Tokens
from angle.tracking.tracker import Tracker

REPO = Path(__file__).resolve().parent.parent
#: What a run measures of the machine.
OF_THE_MACHINE = frozenset({"texts_per_second", "memory_gib"})
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS += ["a", "fox", "owl", "sleep", "##s", "##ing", "under", "the", "moon", ":", '"', "{", "}", "query", "in", "one"]
WORDS += ["word", "colour", "red", "green"]
#: Small random models of every architecture: those whose texts are packed, and those that must be padded.
SMALL = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 64, "initializer_range": 0.2, "pad_token_id": 0,
}  # fmt: skip
DECODER = {"num_key_value_heads": 2, "head_dim": 8, "bos_token_id": 2, "eos_token_id": 3}
WINDOW = DECODER | {"sliding_window": 4, "query_pre_attn_scalar": 8}
MODELS: dict[str, dict[str, Any]] = {
    "bert": {}, "roberta": {}, "xlm-roberta": {},
    "modernbert": {"cls_token_id": 2, "sep_token_id": 3, "local_attention": 8},
    "llama": DECODER, "mistral": WINDOW, "qwen2": DECODER, "qwen3": DECODER, "gemma": DECODER, "gemma3_text": WINDOW,
    "phi3": WINDOW,
}  # fmt: skip
PADDED: dict[str, dict[str, Any]] = {"mpnet": {}, "deberta-v2": {"relative_attention": True}, "gemma2": WINDOW}
torch.set_num_threads(1)  # test files run side by side, and models are tiny: threads would only wait for each other
#: Read when libraries are imported, so they are set before any test file is.
os.environ |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # every command would compile this project anew


def pytest_configure(config: pytest.Config) -> None:
    """Hide GPUs, so that tests do the same everywhere, except from those that are asked for by `-m gpu`."""
    if "gpu" not in config.option.markexpr.replace("not gpu", ""):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_finish() -> None:
    """Take what is imported out of the garbage collector's way: every run collects once, at its end."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["ANGLE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `python SCRIPT ARGUMENTS` as a process of its own, in tmp_path, on the CPU."""

    def run(script: str, *arguments: str, folder: Path = tmp_path, **env: str) -> subprocess.CompletedProcess[str]:
        return start(script, *arguments, folder=folder, **env)

    return run


@pytest.fixture
def unverified(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let conversions end without the new process that takes seconds, where tests compare embeddings themselves."""
    monkeypatch.setattr("angle.export.sentence_transformers.can_verify", lambda: False)


def made_once(paths: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Return a folder that is made by the first of all pytest workers that asks for it; the others wait for it."""
    root = paths.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    with Path(root, f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder, done = root / name, root / f"{name}.done"
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a worker that failed
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def start(script: str, *arguments: str, folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a script of the repository in `folder`."""
    return fork_server.run([str(REPO / script), *arguments], folder, fork_server.environment(**env), timeout=300)


def start_here(script: str, *arguments: str, folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Do what `start` does, but in this process, which has imported everything; a script may be -m and a module."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(folder)
        patch.setattr(sys, "argv", [str(REPO / script), *arguments] if script != "-m" else list(arguments))
        for name, value in {"CUDA_VISIBLE_DEVICES": "", **env}.items():
            patch.setenv(name, value)
        try:
            if script == "-m":
                runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
            else:
                runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
    return subprocess.CompletedProcess([script, *arguments], code, out.getvalue(), err.getvalue())


@contextmanager
def bounded(seconds: float = 10, mebibytes: int = 600) -> Iterator[None]:
    """Let this process compute for so many seconds and take so many MiB of addresses more, as a refusal may."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + mebibytes * 2**20, limits[1]))
    began = time.process_time()
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert time.process_time() - began < seconds


def launch_ranks(
    words: Sequence[str], folder: Path, count: int = 2, **env: str
) -> list[subprocess.CompletedProcess[str]]:
    """Run `python WORDS` as the processes that a launcher would start; return what became of each.

    They are forked, because every new interpreter imports torch anew. What is about a launcher itself is started by it.
    """
    port, size = str(free_port()), str(count)
    env |= {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    environment = fork_server.environment(ACCELERATE_USE_CPU="true") | env

    def launch(rank: int) -> subprocess.CompletedProcess[str]:
        ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        return fork_server.run(words, folder, environment | ranks, timeout=300)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(launch, range(count)))


def run_ranks(function: Callable[..., None], folder: Path, *arguments: Any) -> None:
    """Call a function of a test file in each of two processes, as a launcher would; `$RANK` says which it is."""
    words = [str(REPO / "tests" / "rank.py"), inspect.getfile(function), function.__name__, json.dumps(arguments)]
    for done in launch_ranks(words, folder):
        assert done.returncode == 0, done.stderr[-3000:]


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write one JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def sample_rows(data_format: str, split: str, count: int) -> list[dict[str, Any]]:
    """Return the first rows of the built-in sample, of which a whole split takes seconds."""
    columns = sample.columns(data_format, split, count)
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def sample_rows_with_negatives(count: int) -> list[dict[str, Any]]:
    """Return rows of format B with one to three negatives each, in three columns of which some cells are empty."""
    rows = sample_rows("B", "train", 2 * count)
    others = [row["negative"] for row in rows[count:]]
    for number, row in enumerate(rows[:count]):
        row["negative_1"] = others[number] if number % 3 else None
        row["negative_2"] = others[number - 1] if number % 3 == 2 else ""
    return rows[:count]


def sample_files(folder: Path, data_format: str = "A") -> list[str]:
    """Write a few rows of the built-in sample for training, validation and test; return the words that name them."""
    write_jsonl(folder / "train.jsonl", sample_rows(data_format, "train", 64))
    write_jsonl(folder / "valid_sts.jsonl", sample_rows("A", "validation", 20))
    write_jsonl(folder / "test.jsonl", sample_rows("A", "test", 20))
    return ["data=files", *(f"data.{name}.name_or_path={name}.jsonl" for name in ("train", "valid_sts", "test"))]


def repeatable_metrics(text: str) -> list[dict[str, Any]]:
    """Return the lines of a metrics.jsonl without what two equal runs do not have in common."""
    lines = [json.loads(line) for line in text.splitlines()]
    return [{name: value for name, value in line.items() if name not in OF_THE_MACHINE} for line in lines]


@contextmanager
def dying_at(step: int) -> Iterator[None]:
    """Let runs in this process be interrupted when they count a step, which must happen."""
    advance, steps = Tracker.advance, 0

    def advance_or_die(tracker: Tracker) -> None:
        nonlocal steps
        steps += 1
        if steps == step:
            raise KeyboardInterrupt
        advance(tracker)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tracker, "advance", advance_or_die)
        with pytest.raises(KeyboardInterrupt):
            yield


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Return the content of every file below a folder, None for a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


class SpyTokenizer:
    """One token a word, its checksum; remembers every text it was given."""

    def __init__(self, template: str = "{text}", columns: tuple[str, ...] = ()) -> None:
        self.fingerprint = template
        self.prompt = None
        self.columns = columns
        self.seen: list[str] = []

    def __call__(self, texts: Sequence[str], extras: Sequence[Mapping[str, str]] | None = None) -> Tokens:
        self.seen += texts
        pairs = zip(texts, extras or [{}] * len(texts), strict=True)
        rows = [text.split() + list(extra.values()) for text, extra in pairs]
        ids = np.array([zlib.crc32(word.encode()) % 2**31 for row in rows for word in row], np.int32)
        return Tokens(ids, np.cumsum([0, *map(len, rows)]))

    def with_prompts(self, prompt: str | None, prompts: Mapping[str, str]) -> SpyTokenizer:
        assert prompt is None
        assert not prompts
        return self

    def named(self, name: str) -> SpyTokenizer:
        return self

    def check_known(self, tokens: Tokens) -> None:
        pass

    def unknown_fraction(self, tokens: Tokens) -> float:
        return 0.0


def decoder_tokenizer(*, start: bool, end: bool = False) -> Any:
    """Return a tokenizer as decoders have it: words, an end token that also pads, perhaps a start token."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = {word: number for number, word in enumerate(["<s>", "</s>", *WORDS])}
    backend = Tokenizer(models.WordLevel(words, "[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if start or end:
        one = f"{'<s> ' if start else ''}$A{' </s>' if end else ''}"
        backend.post_processor = processors.TemplateProcessing(one, f"{one} $B:1", [("<s>", 0), ("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>")


@pytest.fixture
def tokenizer() -> SpyTokenizer:
    """A tokenizer that remembers its texts."""
    return SpyTokenizer()


def tokens_of(text: str) -> tuple[int, ...]:
    """Return what SpyTokenizer makes of a text."""
    return tuple(SpyTokenizer()([text]).ids.tolist())


def folders_of(paths: pytest.TempPathFactory, model_of: Callable[[str], Any]) -> Callable[[str], str]:
    """Return a function that gives the folder of a small model and its tokenizer, written once."""
    folders: dict[str, Path] = {}

    def folder(name: str) -> str:
        if name not in folders:
            from angle.modeling.tiny import tiny_tokenizer

            folders[name] = paths.mktemp(name)
            with torch.random.fork_rng():  # whichever test comes first, its random numbers stay its own
                model_of(name).save_pretrained(folders[name])
            tiny_tokenizer().save_pretrained(folders[name])
        return str(folders[name])

    return folder


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Return a function that gives the folder of a small random model."""

    def model_of(name: str) -> Any:
        from transformers import AutoConfig, AutoModel

        from angle.modeling.tiny import tiny_tokenizer

        torch.manual_seed(1)
        config = AutoConfig.for_model(name, vocab_size=len(tiny_tokenizer()), **SMALL | (MODELS | PADDED)[name])
        return AutoModel.from_config(config)

    return folders_of(tmp_path_factory, model_of)
