"""What a run measures: validation sets during training, to choose the best model, and a test set before and after."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from angle.data.corpus import Corpus
from angle.data.retrieval import RETRIEVAL
from angle.errors import ConfigError, did_you_mean
from angle.evaluation.evaluator import Encode, EvaluationRows, Metric, RunContext, ValidationEvaluator
from angle.evaluation.evaluators import validation_evaluators
from angle.evaluation.evaluators.sts import StsEvaluator

#: What is measured on data.test, and what chooses the best model on data.valid_sts unless train.best_metric is given.
TEST_METRIC = DEFAULT_METRIC = StsEvaluator.metric


def metric_named(name: str | None) -> Metric:
    """Return the metric that train.best_metric names; null stands for the default one.

    Raises:
        ConfigError: there is no such metric.

    """
    if name is None:
        return DEFAULT_METRIC
    metrics = _choosing_metrics()
    if name not in metrics:
        raise ConfigError(
            f"train.best_metric={name} is not known{did_you_mean(name, metrics) or '.'} "
            f"Choose one of: {', '.join(metrics)}."
        )
    return metrics[name]


def is_metric(name: str) -> bool:
    """Return whether `metric_named` knows a name, and not only a part of one or what is recorded beside it."""
    return name in _choosing_metrics()


def _choosing_metrics() -> dict[str, Metric]:
    """Return every metric that can choose a model, by its name."""
    return {evaluator.metric.name: evaluator.metric for evaluator in validation_evaluators()}


def validation_purpose(metric: str | None) -> str:
    """Return the rows that a metric is measured on: "valid" or "valid_sts"."""
    chosen = metric_named(metric)
    return next(evaluator.purpose for evaluator in validation_evaluators() if evaluator.metric == chosen)


@dataclass(frozen=True)
class RunEvaluators:
    """The evaluators of a run."""

    validation: tuple[ValidationEvaluator, ...]
    best_metric: Metric | None
    """What chooses the best model; None to choose none."""
    test: ValidationEvaluator | None

    @classmethod
    def build(
        cls, corpora: Mapping[str, EvaluationRows | None], best_metric: str | None, context: RunContext
    ) -> RunEvaluators:
        """Return the evaluators for the rows of each purpose; those of `test` are measured as those of `valid_sts`.

        Raises:
            ConfigError: `best_metric` (train.best_metric) is not measured on these corpora.

        """
        validation = tuple(
            evaluator(rows, context)
            for evaluator in validation_evaluators()
            if (rows := corpora.get(evaluator.purpose)) is not None and rows.format.name in evaluator.formats
        )
        available = [evaluator.metric for evaluator in validation]
        rows = corpora["test"]
        assert rows is None or isinstance(rows, Corpus)
        test = None if rows is None else StsEvaluator(rows, context)
        return cls(validation, _choose_metric(best_metric, available), test)

    @property
    def primary(self) -> ValidationEvaluator | None:
        """The evaluator whose metric chooses the best model, else the first one; None if nothing is validated."""
        chosen = (evaluator for evaluator in self.validation if evaluator.metric == self.best_metric)
        return next(chosen, next(iter(self.validation), None))

    def validate(self, encode: Encode) -> dict[str, float]:
        """Return the values of all metrics by name.

        Args:
            encode: the model; `with_embedding_cache` encodes the texts of each set once.

        """
        return {name: value for evaluator in self.validation for name, value in evaluator.run(encode)}

    def format(self, values: Mapping[str, float]) -> str:
        """Return what `validate` measured, in words; only what can choose a model."""
        metrics = {evaluator.metric.name: evaluator.metric for evaluator in self.validation}
        return ", ".join(
            f"{name} {metrics[metric].format(value)}"
            for name, value in values.items()
            if (metric := name.partition("/")[0]) in metrics
        )

    def run_test(self, encode: Encode) -> dict[str, float]:
        """Return the values of all metrics of the test set by name, `TEST_METRIC` among them; none without one."""
        return {} if self.test is None else dict(self.test.run(encode))


def _choose_metric(name: str | None, available: Iterable[Metric]) -> Metric | None:
    """Return the available metric that `train.best_metric` names; by default `DEFAULT_METRIC` if it is available."""
    metrics = {metric.name: metric for metric in available}
    if name is None or name in metrics:
        return metrics.get(DEFAULT_METRIC.name if name is None else name)
    metric = metric_named(name)
    evaluator = next(evaluator for evaluator in validation_evaluators() if evaluator.metric == metric)
    setting = f"data.{evaluator.purpose}.name_or_path"
    rows, example = f"rows of format {' or '.join(sorted(evaluator.formats))}", "FILE"
    if evaluator.formats == {RETRIEVAL.name}:
        rows, example = "queries and judgements", "FOLDER"
    others = f", or choose one of: {', '.join(metrics)}." if metrics else "."
    raise ConfigError(f"train.best_metric={name} needs validation {rows}: give {setting}={example}{others}")
