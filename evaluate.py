"""Measure an encoder on semantic textual similarity: python evaluate.py model.name_or_path=RUN tasks=[stsb]."""

from __future__ import annotations

from pathlib import Path

from angle.config import EvaluateConfig
from angle.launch import launch


def main(config: EvaluateConfig) -> float | None:
    """Evaluate, print the table, say where the numbers are, and return the mean Spearman correlation."""
    from angle.evaluation.report import evaluate, table

    evaluation = evaluate(config)
    print(
        f"{config.model.name_or_path}: {evaluation.contract}\n\n{table(evaluation.results)}\n\n"
        f"Saved   {evaluation.path}, with every pair's scores beside it",
        flush=True,
    )
    return evaluation.mean_spearman


if __name__ == "__main__":
    launch(main, EvaluateConfig, "evaluate", Path(__file__).resolve().parent / "conf")
