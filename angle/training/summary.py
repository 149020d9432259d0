"""The last lines of a run: whether training has helped, the scores, where the model is, and what to type next."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence

from angle.config import RETRIEVAL_METRIC, TrainConfig
from angle.config.overrides import hydra_override, hydra_overrides
from angle.distributed.environment import is_main_process, script_command
from angle.evaluation.evaluator import Metric
from angle.evaluation.run_evaluators import DEFAULT_METRIC, TEST_METRIC, is_metric, metric_named
from angle.files import relative_to_cwd
from angle.terminal import labelled, print_once, wrapped_command
from angle.tracking.console import append_to_log
from angle.training.result import Result
from angle.training.run_folder import RunFolder

SWEEP_FLAGS = frozenset({"-m", "--multirun"})
#: How command-line words start that another run with the same settings leaves out.
LEFT_OUT = ("-", "hub.", "hydra.", "train.output_dir=", "train.resume=")


def print_summary(result: Result, words: Sequence[str] | None = None) -> None:
    """Print the summary of a run on the main process, and write the same into the run's log."""
    if not is_main_process():
        return
    text = summary(result, words)
    print_once(text)
    if not result.already_finished:
        append_to_log(result.folder, text)


def summary(result: Result, words: Sequence[str] | None = ()) -> str:
    """Return what a user wants to know after a run.

    Args:
        result: the outcome of the run.
        words: the command line, for suggesting another run like it; None, as from Python, and that of a sweep get no
            next steps, which concern only its best job.

    """
    folder = RunFolder(result.folder)
    run, config = relative_to_cwd(result.folder), folder.resolved_config()
    lines = [f"{run} holds this run already, finished."] if result.already_finished else []
    has_notes = bool(folder.record().get("notes"))
    lines += [labelled("Warning:", warning) for warning in warnings(result, config, has_notes=has_notes)]
    lines += [labelled(label, text) for label, text in _scores(result)]
    lines += [f"Saved   {run}/{'best' if result.best_step is not None else 'final'}"]
    if result.pushed is not None:
        lines += [f"Pushed  {result.pushed}{' (by this run before)' if result.already_pushed else ''}"]
    if words is None or not SWEEP_FLAGS.isdisjoint(words):
        return "\n".join(lines)
    if any(word.startswith("train.resume=") for word in words):
        words = hydra_overrides(folder.requested_config())
    commands = "\n".join(wrapped_command(command) for command in _next_commands(result, config, run, words))
    return "\n".join([*lines, "", f"Next    {commands.lstrip()}"])


def gain(result: Result) -> float | None:
    """Return by how much training has improved the model, below 0 if it has made it worse; None: unknown.

    It is measured by what chose the model, or else on the test set, or else by the loss on validation rows. A metric
    that was at its best before and stays there has gained something above 0.
    """
    loss = metric_named("loss")
    measured: list[tuple[Metric, float | None, float | None]] = [
        (result.metric, result.valid_before.get(result.metric.name), result.best_score),
        (TEST_METRIC, result.test_before, result.test_after),
        (loss, result.valid_before.get(loss.name), result.valid_after.get(loss.name)),
    ]
    for metric, before, after in measured:
        if before is not None and after is not None:
            is_perfect = metric.is_fraction and before == after == 1
            return 1.0 if is_perfect else metric.score(after) - metric.score(before)
    return None


def suggested_sweep(config: TrainConfig) -> dict[str, str]:
    """Return settings worth sweeping, with their values, among those that matter to a run with these settings."""
    loss = config.loss
    if config.data.has_losses_by_source:
        return {"train.learning_rate": f"{config.train.learning_rate:g},{2 * (config.train.learning_rate or 0):g}"}
    if config.data_format.name == "C":  # the weight of its only term merely scales the loss
        return {"loss.ibn_tau": "10,20,50"}
    swept = {"loss.ibn_w": "10,20,30"} if loss.ibn_w else {}
    if loss.angle_w:
        swept["loss.angle_tau"] = "1,20"
    if not loss.ibn_w and loss.cosine_w:
        swept["loss.cosine_tau"] = "5,10,20"
    return swept


def _is_unmeasured(result: Result) -> bool:
    return not result.valid_after and result.test_after is None


def _can_hold_out(config: TrainConfig) -> bool:
    """Return whether data.valid_split can be added to a run with these settings."""
    data = config.data
    has_rows = data.valid_split or data.valid.names() or data.valid_sts.names()
    return not (data.streaming or data.train.sources or has_rows)


def _better_lr(result: Result, config: TrainConfig) -> float:
    """Return a learning rate to try where this run's has not helped."""
    assert config.train.learning_rate is not None  # that of a run has been decided
    return config.train.learning_rate * (3 if gain(result) == 0 else 0.1)


def warnings(result: Result, config: TrainConfig, *, has_notes: bool) -> Iterator[str]:
    """Yield what a user must know before anything else."""
    if _is_unmeasured(result):
        hold_out = ", and data.valid_split=0.05 on rows held out" if _can_hold_out(config) else ""
        yield (
            f"nothing was measured, so it is unknown whether training has helped. data.valid_sts.name_or_path=FILE "
            f"measures the model on pairs with labels{hold_out}."
        )
        return
    if result.pruned:
        return  # a search has stopped it, because others do better
    metric, overlap = result.metric, result.valid_word_overlap
    measured = [
        ("validation", metric, result.valid_before.get(metric.name), result.best_score,
         overlap if metric == DEFAULT_METRIC else None),
        ("the test set", TEST_METRIC, result.test_before, result.test_after, result.test_word_overlap),
    ]  # fmt: skip
    worse = "; ".join(
        f"{metric.label} on {name} was {metric.format(before)} before, and is {metric.format(after)} after it"
        for name, metric, before, after, _ in measured
        if before is not None and after is not None and metric.score(after) < metric.score(before)
    )
    gained = gain(result)
    if gained is not None and gained <= 0:
        rate = f"train.learning_rate={_better_lr(result, config):g}"
        advice = f"{rate}, or more steps" if gained == 0 else f"{rate}, a tenth of this run's"
        see_notes = ", and see the notes at the start of train.log" if has_notes else ""
        yield f"training has not helped{f': {worse}' if worse else ''}. Try {advice}{see_notes}."
    elif worse:
        yield f"training has not helped everywhere: {worse}."
    no_worse = [
        f"{metric.format(overlap)} on {name}, the model {metric.format(after)}"
        for name, metric, _, after, overlap in measured
        if after is not None and overlap is not None and not metric.is_better(after, overlap)
    ]
    if no_worse:
        yield (
            f"counting the words that two texts share does no worse ({'; '.join(no_worse)}), so the model needs more "
            f"rows or more steps."
        )


def _scores(result: Result) -> Iterator[tuple[str, str]]:
    """Yield what was measured, with its label."""
    metric = result.metric
    if result.pruned:
        yield "Pruned", f"after {result.steps:,} steps, as one of the search's worse jobs"
    elif result.stopped_early:
        yield "Stopped", f"early, after {result.steps:,} steps"
    if result.best_score is not None:
        before = result.valid_before.get(metric.name)
        compared = "" if before is None else f" ({metric.format(before)} before training)"
        gained = gain(result)
        at_step = "" if result.best_step is None else f", at step {result.best_step}"  # a soup has none
        yield (
            "Best" if gained is None or gained > 0 else "Kept",
            f"{metric.label} {metric.format(result.best_score)} on validation{at_step}{compared}",
        )
    elif result.valid_after and result.valid_before:
        names = [name for name in result.valid_after if name in result.valid_before and is_metric(name)]
        values = (
            f"{metric_named(name).label} {metric_named(name).format(result.valid_before[name])} before training, "
            f"{metric_named(name).format(result.valid_after[name])} after"
            for name in names
        )
        yield "Valid", f"{'; '.join(values)}. train.best_metric={names[0]} would keep the best model."
    if result.test_before is not None and result.test_after is not None:
        overlap = TEST_METRIC.format(result.test_word_overlap or 0.0)
        yield (
            "Test",
            f"{TEST_METRIC.label} {TEST_METRIC.format(result.test_before)} before training, "
            f"{TEST_METRIC.format(result.test_after)} after (shared words alone: {overlap})",
        )


def _next_commands(result: Result, config: TrainConfig, run: str, words: Sequence[str]) -> Iterator[list[str]]:
    """Yield what to type next, as words that a shell takes: nothing that the warnings speak against."""
    train, gained = ["python", script_command("train.py")], gain(result)
    if gained is not None and gained <= 0:
        lr = f"train.learning_rate={_better_lr(result, config):g}"
        yield [*train, *_same_words(words, {"train.learning_rate"}), lr]
        return
    if _is_unmeasured(result) and _can_hold_out(config):
        yield [*train, *_same_words(words, set()), "data.valid_split=0.05"]
    evaluate, convert = use_commands(result, run)
    yield evaluate
    if config.ese.enabled:
        yield [*evaluate, "ese_grid=true"]
    yield convert
    yield ["python", "-m", "angle.report", shlex.quote(run)]
    sweep = suggested_sweep(config)
    if result.best_score is not None and sweep:  # it would compare its jobs by it
        yield [*train, "-m", *_same_words(words, set(sweep)), *(f"{name}={values}" for name, values in sweep.items())]


def use_commands(result: Result, run: str) -> tuple[list[str], list[str]]:
    """Return what evaluates and what converts the model of a run in a folder, as words that a shell takes."""
    model = shlex.quote(hydra_override("model.name_or_path", run))
    tasks = [] if result.test_after is not None else ["tasks=[stsb]"]
    if tasks and result.best_metric == RETRIEVAL_METRIC:
        tasks = ["tasks=[nano_beir]"]
    return ["python", script_command("evaluate.py"), model, *tasks], ["python", script_command("convert.py"), model]


def _same_words(words: Sequence[str], replaced: set[str]) -> list[str]:
    """Return the words that set what a run like this one has too, quoted for a shell, without settings to replace."""
    last = {word.lstrip("+~").partition("=")[0]: word for word in words if not word.startswith(LEFT_OUT)}
    return [shlex.quote(word) for name, word in last.items() if name not in replaced]
