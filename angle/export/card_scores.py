"""The scores of a model card, and how they came about in training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from angle.config import SourceConfig
from angle.data.purposes import default_split
from angle.evaluation.evaluator import Metric
from angle.evaluation.evaluators.sts import PEARSON
from angle.evaluation.run_evaluators import (
    DEFAULT_METRIC,
    TEST_METRIC,
    is_metric,
    metric_named,
    validation_purpose,
)
from angle.export.markdown import table
from angle.export.public_names import describe_source
from angle.export.trained_run import TrainedRun

#: Rows of the log in a card, of as many evaluations as there were.
MAX_LOG_ROWS = 20


@dataclass(frozen=True)
class Score:
    """What a run measured of its model."""

    metric: Metric
    source: SourceConfig
    """What it was measured on."""
    split: str
    """That source's default split."""
    purpose: str
    """What its rows are for, in words."""
    rows: int | None
    """Their number, if it is known."""
    value: float
    pearson: float | None = None
    """Pearson's correlation beside Spearman's, None if it was not recorded."""
    remark: str = ""
    """When it was measured, or of what."""
    unit: str = "rows"
    """What a row is called."""
    is_of_this_model: bool = True
    """Whether this model was measured, not what it is compared with."""

    @property
    def dataset(self) -> str:
        """What it was measured on, in words that do not depend on the number of rows."""
        return describe_source(self.source, self.purpose, self.split, unit=self.unit)

    @property
    def measured_on(self) -> str:
        """What it was measured on, and when."""
        described = describe_source(self.source, self.purpose, self.split, self.rows, self.unit)
        return f"{described}, {self.remark}" if self.remark else described

    def values(self) -> Iterator[tuple[Metric, float]]:
        """Yield the metrics and their values."""
        yield self.metric, self.value
        if self.pearson is not None:
            yield PEARSON, self.pearson


def scores_of(run: TrainedRun) -> list[Score]:
    """Return what a run measured."""
    data, result, rows = run.config.data, run.record["result"], run.record.get("rows", {})
    best_metric = run.config.train.best_metric
    metric = metric_named(best_metric)
    purpose, source = validation_purpose(best_metric), data.valid
    split = words = "validation"
    if purpose == "valid_retrieval":
        sets = data.valid_retrieval
        source, split = SourceConfig(sets.name_or_path, split=sets.split), default_split(purpose)
    elif purpose == "valid_sts" and data.valid_sts.names():
        source = data.valid_sts
    else:
        purpose = "valid"
    if data.valid_split and purpose != "valid_retrieval":
        source, split, words = data.train, "train", "held-out"
    unit = "queries" if purpose == "valid_retrieval" else "rows"
    validation = partial(Score, metric, source, split, words, rows.get(purpose), unit=unit)
    test = partial(Score, TEST_METRIC, data.test, "test", "test", rows.get("test"))
    before: Any = result.get("valid_before", {}).get(metric.name)  # earlier versions have none
    correlations = metric == DEFAULT_METRIC
    last_step = max((line["step"] for line in run.log), default=0)

    def pearson(role: str, step: int | None) -> float | None:
        return None if step is None or (role == "valid" and not correlations) else run.logged(f"{role}/pearson", step)

    when = "" if result["best_step"] is None else f"step {result['best_step']}"  # a soup has none
    scores = [
        validation(result["best_score"], pearson("valid", result["best_step"]), when),
        validation(before, pearson("valid", 0), "before training", is_of_this_model=False),
        test(result["test_after"], pearson("test", last_step)),
        test(result["test_before"], pearson("test", 0), "before training", is_of_this_model=False),
        test(result["test_word_overlap"], None, "of shared words alone", is_of_this_model=False),
    ]
    return [score for score in scores if score.value is not None]


def score_tables(scores: Sequence[Score]) -> str:
    """Return the section of the scores, a table for each metric; nothing without scores."""
    sections = []
    for metric in dict.fromkeys(score.metric for score in scores):
        of_metric = [score for score in scores if score.metric == metric]
        with_pearson = any(score.pearson is not None for score in of_metric)
        rows = [
            (
                score.measured_on,
                metric.format(score.value),
                *([_or_dash(PEARSON, score.pearson)] if with_pearson else []),
            )
            for score in of_metric
        ]
        sections.append(table(("measured on", metric.label, *([PEARSON.label] if with_pearson else [])), rows))
    return "\n\n".join(["## Scores", "Correlations and accuracies are times 100.", *sections]) if sections else ""


def log_table(run: TrainedRun) -> str:
    """Return the evaluations of a run, with the loss before each; the losses alone if there was no evaluation."""
    lines: dict[int, dict[str, Any]] = {}
    for line in run.log:
        lines.setdefault(line["step"], {}).update(line)
    measured = [line for line in lines.values() if any(name.startswith("valid/") for name in line)]
    chosen = _thinned(measured or list(lines.values()), run.record["result"]["best_step"])
    names = [
        name
        for name in dict.fromkeys(key.removeprefix("valid/") for line in chosen for key in line if "valid/" in key)
        if is_metric(name) or name == PEARSON.name
    ]
    metrics = [PEARSON if name == PEARSON.name else metric_named(name) for name in names]
    losses = {step: line["loss"] for step, line in lines.items() if line.get("loss") is not None}
    if not losses and not measured:
        return ""
    rows = []
    for line in chosen:
        step = line["step"]
        loss = next((losses[each] for each in sorted(losses, reverse=True) if each <= step), None)
        row = [str(step), "–" if loss is None else f"{loss:.3f}"]
        row += [_or_dash(metric, line.get(f"valid/{metric.name}")) for metric in metrics]
        is_best = bool(metrics) and step == run.record["result"]["best_step"]
        rows.append([f"**{cell}**" for cell in row] if is_best else row)
    best = " The best one, which was kept, is in bold." if run.record["result"]["best_step"] is not None else ""
    header = ("step", "training loss", *(f"validation {metric.label}" for metric in metrics))
    return f"How training went.{best}\n\n{table(header, rows)}"


def _thinned(lines: list[dict[str, Any]], best_step: int | None) -> list[dict[str, Any]]:
    """Return at most about `MAX_LOG_ROWS` lines, evenly, with the first, the best and the last one."""
    every = -(-len(lines) // MAX_LOG_ROWS) or 1
    last = len(lines) - 1
    return [
        line for number, line in enumerate(lines) if number % every == 0 or number == last or line["step"] == best_step
    ]


def _or_dash(metric: Metric, value: float | None) -> str:
    return "–" if value is None else metric.format(value)
