"""Evaluate an encoder on semantic textual similarity: python evaluate.py model.name_or_path=RUN tasks=[stsb]."""

from __future__ import annotations

from pathlib import Path

from angle.cli.app import launch, require_model
from angle.config import EvaluateConfig


def main(config: EvaluateConfig) -> float | None:
    """Evaluate, print the table and where the numbers are saved, and return the mean Spearman correlation."""
    require_model("evaluate.py")
    from angle.distributed.process_group import init_distributed
    from angle.evaluation.grid import evaluate_grid
    from angle.evaluation.report import evaluate, table

    processes = init_distributed("evaluate.py")
    if config.ese_grid:
        grid = evaluate_grid(config, processes)
        contract, found, saved = grid.contract, str(grid), f"{grid.folder}/grid.png, and the numbers in grid.json"
        score = grid.mean_spearman
    else:
        evaluation = evaluate(config, processes)
        contract, found, score = evaluation.contract, table(evaluation.results), evaluation.mean_spearman
        saved = f"{evaluation.path}, with every pair's scores beside it"
    if processes.is_main_process:
        print(f"{config.model.name_or_path}: {contract}\n\n{found}\n\nSaved   {saved}", flush=True)
    return score


if __name__ == "__main__":
    launch(main, EvaluateConfig, "evaluate", Path(__file__).resolve().parent / "conf")
