"""angle_emb's tiny training runs, reproduced through the real loop.

The fixture holds numbers only: a three-layer BERT with random weights, rows whose words are w0, w1, ..., and the
losses that release 0.5.4 of angle_emb printed for them (CPU, float32, no dropout, rows in order), plain, with the
student itself as teacher, and with Espresso.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import REPO

from angle import Encoder, ModelConfig, TrainConfig, build_config, fit

FIXTURE = REPO / "tests" / "fixtures" / "reference_run"
REFERENCE: dict[str, Any] = json.loads((FIXTURE / "runs.json").read_text())


@pytest.mark.parametrize("run", REFERENCE["runs"], ids=lambda run: run["name"])
def test_reference_run_is_reproduced_step_by_step(run: dict[str, Any], tmp_path: Path) -> None:
    rows = REFERENCE["data"][run["name"][0]]
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    accumulation = run["fit"]["gradient_accumulation_steps"]
    config = build_config(
        {
            "model": {"name_or_path": str(FIXTURE / "model")},
            "pooling": {"strategy": run["pooling"]},
            "loss": run["loss_kwargs"] | {"reverse_w": 0.0},
            **run.get("settings", {}),
            "data": {"train": {"name_or_path": str(data)}, "shuffle": False, "duplicates": "keep"},
            "train": {
                "batch_size": run["fit"]["batch_size"],
                "epochs": run["fit"]["epochs"],
                "learning_rate": run["fit"]["learning_rate"],
                "warmup_steps": run["fit"]["warmup_steps"],
                "gradient_accumulation_steps": accumulation,
                "logging_steps": 1,
                "output_dir": str(tmp_path / "run"),
            },
        },
        TrainConfig,
    )

    fit(config)

    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    # angle_emb printed every batch, we print the mean of a step's batches.
    expected = np.array(run["step_losses"]).reshape(-1, accumulation).mean(axis=1)
    np.testing.assert_allclose(losses, expected, rtol=1e-4)

    first, second = (list(row.values())[role] for role, row in enumerate(rows[:2]))
    embeddings = Encoder.load(ModelConfig(str(tmp_path / "run" / "final"))).encode([first, second])
    np.testing.assert_allclose(embeddings, np.array(run["final_embeddings"])[:2], atol=1e-4)
