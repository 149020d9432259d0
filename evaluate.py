"""Evaluate an encoder on pairs of texts or on retrieval: python evaluate.py model.name_or_path=RUN tasks=[stsb]."""

from __future__ import annotations

from pathlib import Path

from angle.cli.app import launch, require_model
from angle.config import EvaluateConfig
from angle.terminal import announce, print_once


def main(config: EvaluateConfig) -> float | None:
    """Evaluate, print the table and where the numbers are saved, and return the mean score over all tasks."""
    require_model("evaluate.py")
    announce("loading libraries")
    from angle.distributed.process_group import init_distributed
    from angle.evaluation.grid import evaluate_grid
    from angle.evaluation.mteb_suite import evaluate_mteb
    from angle.evaluation.report import evaluate

    processes = init_distributed("evaluate.py")
    measure = evaluate_mteb if config.suite == "mteb" else evaluate_grid if config.ese_grid else evaluate
    evaluation = measure(config, processes)
    print_once(
        f"{config.model.name_or_path}: {evaluation.embedding_config}\n\n{evaluation}\n\n"
        f"Saved   {evaluation.saved_files}"
    )
    return evaluation.score


if __name__ == "__main__":
    launch(main, EvaluateConfig, "evaluate", Path(__file__).resolve().parent / "conf")
