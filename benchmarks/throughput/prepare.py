"""Models, rows and the peer's environment, prepared before anything is timed."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import venv
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from angle.cache import cache_folder

PEER = "0.6.1"
SEED = 0
#: Column names in the default data sets, mapped to the names used here.
RENAMED = {"sentence1": "text1", "sentence2": "text2", "score": "label", "query": "text"}
COLUMNS = {"A": ("text1", "text2", "label"), "B": ("text", "positive", "negative")}
DROPOUTS = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "attention_dropout",
    "hidden_dropout",
    "embedding_dropout",
)


def peer_python() -> str:
    """Return the interpreter of angle_emb's environment, needed because it pins other versions; created once."""
    here = version("torch").split("+")[0]
    folder = cache_folder("peers") / f"angle_emb-{PEER}-torch-{here}"
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        print(f"Installing angle_emb {PEER} with torch {here} into {folder}", flush=True)
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "-q", f"angle-emb=={PEER}", f"torch=={here}"], check=True)
        (folder / "complete").touch()
    return str(python)


def peer_versions(python: str) -> dict[str, str]:
    """Return the versions in that environment of the packages that determine speed."""
    code = "import importlib.metadata as m, json; print(json.dumps({n: m.version(n) for n in %r}))"
    names = ["angle-emb", "torch", "transformers", "accelerate"]
    found: dict[str, str] = json.loads(subprocess.check_output([python, "-c", code % names], text=True))
    return found


def versions_here(*others: str) -> dict[str, str]:
    """Return the versions in this environment of the packages that determine results, and of `others`."""
    return {name: version(name) for name in ("torch", "transformers", "accelerate", *others)}


def read_rows(source: str, split: str, data_format: str) -> list[dict[str, Any]]:
    """Return the rows of a .jsonl, .json or .parquet file (also .gz) or of a data set on the hub, columns renamed."""
    from datasets import load_dataset

    if Path(source).is_file():
        kind = "parquet" if source.endswith(".parquet") else "json"
        table = load_dataset(kind, data_files=source, split="train")
    else:
        table = load_dataset(source, split=split)
    names = {RENAMED.get(name, name): name for name in table.column_names}
    missing = [column for column in COLUMNS[data_format] if column not in names]
    if missing:
        sys.exit(f"{source} has no column {', '.join(missing)}; it has {', '.join(table.column_names)}.")
    return [{column: row[names[column]] for column in COLUMNS[data_format]} for row in table]


def choose(rows: Sequence[dict[str, Any]], count: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return `count` rows in a random order, always the same, and the others."""
    if len(rows) < count:
        sys.exit(f"{len(rows):,} rows are too few for {count:,}: give a larger file, or fewer --steps.")
    chosen = random.Random(SEED).sample(range(len(rows)), count)
    others = set(range(len(rows))).difference(chosen)
    return [rows[index] for index in chosen], [rows[index] for index in sorted(others)]


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    """Write rows as .jsonl and return the path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def find_model(name: str) -> Path:
    """Return the folder of a checkpoint, downloaded if it is a hub name."""
    if Path(name).is_dir():
        return Path(name).resolve()
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, allow_patterns=["*.json", "*.txt", "*.safetensors", "*/config.json"]))


def without_dropout(model: Path, folder: Path) -> str:
    """Create a folder with the same checkpoint but dropout off, and return it."""
    folder.mkdir(parents=True)
    for path in model.iterdir():
        if path.is_file() and path.name != "config.json":
            (folder / path.name).symlink_to(path.resolve())
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    config |= {name: 0.0 for name in DROPOUTS if name in config or name in DROPOUTS[:3]}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return str(folder)


def random_model(shape: str, words: Path, folder: Path, layers: int | None = None) -> Path:
    """Create a checkpoint of a shape, with random weights and another model's tokenizer, and return its folder.

    Args:
        shape: bert-base or llama-7b.
        words: folder of the BERT model whose tokenizer it gets.
        folder: the folder to save it in.
        layers: number of layers, if not the shape's own.

    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BertConfig, BertModel

    from benchmarks.memory import SHAPES, save_random_weights

    tokenizer = AutoTokenizer.from_pretrained(words)
    torch.manual_seed(SEED)
    if shape == "bert-base":
        BertModel(BertConfig(**({} if layers is None else {"num_hidden_layers": layers}))).save_pretrained(folder)
    else:
        settings = SHAPES["7B"].settings | ({} if layers is None else {"num_hidden_layers": layers})
        marks = {"bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id}
        config = AutoConfig.for_model("llama", pad_token_id=tokenizer.pad_token_id, **marks, **settings)
        save_random_weights(AutoModelForCausalLM, config, folder)  # with the LM head, which angle_emb loads
    tokenizer.save_pretrained(folder)
    return folder


def text_lengths(model: Path, texts: Sequence[str], max_length: int) -> dict[str, int]:
    """Return the number of tokens in each distinct text, special tokens included, cut at `max_length`."""
    from transformers import AutoTokenizer

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    distinct = list(dict.fromkeys(texts))
    encoded = AutoTokenizer.from_pretrained(model)(distinct, truncation=True, max_length=max_length)["input_ids"]
    return {text: len(ids) for text, ids in zip(distinct, encoded, strict=True)}
