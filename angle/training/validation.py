"""Measuring a run before and during training, choosing its best model, and stopping early."""

from __future__ import annotations

import math
from collections.abc import Mapping

from angle.config import enumerate_words
from angle.errors import TrainingError
from angle.evaluation.evaluator import Encode, Metric, with_embedding_cache
from angle.evaluation.evaluators.sts import word_overlap
from angle.evaluation.predictions import AFTER, BEFORE
from angle.evaluation.run_evaluators import TEST_METRIC
from angle.terminal import announce, labelled
from angle.training.checkpoint import Progress
from angle.training.distributed import from_main_process
from angle.training.run import Run
from angle.training.sharding import sync_buffers


def evaluate_untrained(run: Run) -> None:
    """Measure the model before training, and what counting the words that two texts share would score."""
    test_values: Mapping[str, float] = {}
    if run.config.train.eval_on_start:
        if run.evaluators.validation or run.evaluators.test:
            announce("measuring the model before training")
        encode = with_embedding_cache(run.encode)
        run.progress.values_before = _validate(run, encode)
        run.save_predictions(BEFORE, encode)
        test_values = run.evaluators.run_test(run.encode)
    if not run.accelerator.is_main_process:
        return
    special_ids = set(run.encoder.tokenizer.tokenizer.all_special_ids)
    overlaps = {
        f"{purpose}_word_overlap": word_overlap(corpus, special_ids)
        for purpose, corpus in (("valid", run.data.valid_sts), ("test", run.data.test))
        if corpus is not None
    }
    run.folder.update(test_before=test_values.get(TEST_METRIC.name), **overlaps)
    if test_values:
        run.tracker.log_metrics(0, {f"test/{name}": value for name, value in test_values.items()})


def evaluate(run: Run) -> None:
    """Evaluate on the validation sets, across all processes; save the model if it is the best that was trained."""
    progress, best_metric = run.progress, run.evaluators.best_metric
    encode = with_embedding_cache(run.encode)
    progress.last_values = values = _validate(run, encode)
    if best_metric is None:
        run.save_predictions(AFTER, encode)
    else:
        value = values[best_metric.name]
        if best_metric.is_better(value, progress.best_score):
            run.save_predictions(AFTER, encode)  # before the model: after a crash in between, this step is repeated
            progress.best_score, progress.best_step = value, progress.step
            run.save("best", step=progress.step, score=value)
            run.tracker.show_best(best_metric.format(value))
        count_evaluation(progress, value, best_metric, run.config.train.min_gain)
        progress.pruned = _is_pruned(run, best_metric.score(value))
    run.accelerator.wait_for_everyone()


def count_evaluation(progress: Progress, value: float, metric: Metric, min_gain: float) -> None:
    """Count an evaluation for early stopping; the first one is what others must be better than."""
    if metric.is_better(value, progress.reference_score, min_gain):
        progress.reference_score, progress.evaluations_without_gain = value, 0
    else:
        progress.evaluations_without_gain += 1


def _is_pruned(run: Run, score: float) -> bool:
    """Return whether a search stops the run after an evaluation; after the last one it only hears of it."""
    pruner, share_done = run.pruner, run.progress.step / run.total_steps
    if pruner is None:
        return False
    return from_main_process(lambda: pruner(share_done, score), run.accelerator) and share_done < 1


def is_stopped_early(progress: Progress, patience: int | None) -> bool:
    """Return whether training ends before its last step."""
    return progress.pruned or is_out_of_patience(progress, patience)


def is_out_of_patience(progress: Progress, patience: int | None) -> bool:
    """Return whether training stops early; with a patience of None it never does."""
    return patience is not None and progress.evaluations_without_gain >= patience


def _validate(run: Run, encode: Encode) -> dict[str, float]:
    """Measure the model on the validation sets, report it, and return the values of all metrics by name.

    All processes return the main process's, since they decide together what follows.
    """
    progress, best_metric = run.progress, run.evaluators.best_metric
    sync_buffers(run.trainable, run.accelerator)
    values = run.evaluators.validate(encode)
    values = from_main_process(lambda: values, run.accelerator)
    bad = [f"valid/{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
    if bad and progress.step == 0:
        raise TrainingError(f"{enumerate_words(bad)} before training: choose another model.")
    if bad:
        raise TrainingError(
            f"{enumerate_words(bad)} after step {progress.step}. {run.recovery()} Start a new run with a lower "
            f"train.learning_rate."
        )
    if values and run.accelerator.is_main_process:
        run.tracker.log_metrics(progress.step, {f"valid/{name}": value for name, value in values.items()})
        is_best = (
            best_metric is not None
            and progress.step > 0
            and best_metric.is_better(values[best_metric.name], progress.values_before.get(best_metric.name))
            and best_metric.is_better(values[best_metric.name], progress.best_score)
        )
        text = f"validation: {run.evaluators.format(values)}{' (best so far)' if is_best else ''}"
        run.tracker.info(labelled(f"step {progress.step} ", text))
    return values
