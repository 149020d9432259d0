"""The outcome of a run, as numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from angle.evaluation.evaluator import Metric
from angle.evaluation.run_evaluators import DEFAULT_METRIC, metric_named


@dataclass(frozen=True)
class Result:
    """The outcome of a run."""

    folder: Path
    """The run folder."""
    already_finished: bool = False
    """The run was already finished; nothing was done."""
    best_metric: str | None = DEFAULT_METRIC.name
    """Name of the metric that chose the best model; None without validation rows for one."""
    best_score: float | None = None
    """Its best value in training; None without one."""
    best_step: int | None = None
    """The step at which it was reached."""
    steps: int | None = None
    """Optimiser steps that were taken."""
    stopped_early: bool = False
    """Whether that is fewer than planned, as train.patience asked."""
    pruned: bool = False
    """Whether it is, as a search for settings asked."""
    valid_before: Mapping[str, float] = field(default_factory=dict)
    """All validation metrics before training, by name."""
    valid_after: Mapping[str, float] = field(default_factory=dict)
    """The same at the end, of the last model."""
    valid_word_overlap: float | None = None
    """`DEFAULT_METRIC` on the validation pairs of a baseline that only counts shared words."""
    test_before: float | None = None
    """`TEST_METRIC` on data.test before training."""
    test_after: float | None = None
    """The same after training, for the best model if there is one, otherwise for the final one."""
    test_word_overlap: float | None = None
    """The same of the baseline that only counts shared words."""
    pushed: str | None = None
    """Where the model is on the hub."""
    already_pushed: bool = False
    """It was already there; nothing was pushed."""
    push_problem: str | None = None
    """Why the push failed, and how to retry."""

    @property
    def metric(self) -> Metric:
        """The metric that chose the best model, or would have with rows for it."""
        return metric_named(self.best_metric)

    @property
    def score(self) -> float | None:
        """The best score as a sweep compares it: higher is better, so a loss is negated; None without one."""
        return None if self.best_score is None else self.metric.score(self.best_score)
