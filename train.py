"""Train an AnglE sentence encoder: python train.py model=bert_base data=nli_b."""

from __future__ import annotations

import sys
from pathlib import Path

from angle.cli.app import launch, overridden_settings
from angle.cli.search import job_pruner
from angle.config import TrainConfig
from angle.errors import HubError
from angle.terminal import announce, print_once


def main(config: TrainConfig) -> float | None:
    """Train, print the results and what to do next, and return the score that a sweep compares.

    Raises:
        HubError: the run is finished, but pushing its model failed.

    """
    announce("loading libraries")
    from angle.training.dry_run import dry_run
    from angle.training.loop import fit
    from angle.training.summary import print_summary

    if config.train.dry_run:
        print_once(dry_run(config))
        return None
    result = fit(config, overridden_settings(), job_pruner())
    print_summary(result, sys.argv[1:])
    if result.push_problem is not None:
        raise HubError(result.push_problem, result.score)
    return result.score


if __name__ == "__main__":
    launch(main, TrainConfig, "train", Path(__file__).resolve().parent / "conf")
