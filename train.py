"""Train an AnglE sentence encoder: python train.py model=bert_base data=nli_b."""

from __future__ import annotations

import sys
from pathlib import Path

from angle.config import TrainConfig
from angle.errors import HubError
from angle.launch import is_main_process, launch, named_settings


def main(config: TrainConfig) -> float | None:
    """Train, print the results and what to do next, and return the score that a sweep compares.

    Raises:
        HubError: the run is finished, but pushing its model failed.

    """
    from angle.training.dry_run import dry_run
    from angle.training.loop import fit

    if config.train.dry_run:
        _print(dry_run(config))
        return None
    result = fit(config, named_settings())
    _print(result.summary(sys.argv[1:]))
    if result.push_problem is not None:
        raise HubError(result.push_problem, result.best_score)
    return result.best_score


def _print(text: object) -> None:
    """Print on the main process only."""
    if is_main_process():
        print(text, flush=True)


if __name__ == "__main__":
    launch(main, TrainConfig, "train", Path(__file__).resolve().parent / "conf")
