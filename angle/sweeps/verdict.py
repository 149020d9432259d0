"""What a sweep has shown, in sentences: which setting is better, by how much, and what may be chance."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping

from angle.config.record import read_record
from angle.errors import ConfigError
from angle.evaluation.comparison import Difference, Sampled, bootstrap, difference
from angle.evaluation.evaluator import Metric
from angle.evaluation.run_evaluators import TEST_METRIC
from angle.sweeps.settings import Setting, as_typed
from angle.sweeps.sweep import Job, Sweep

#: The runs of a setting, by what pairs them with those of another.
Runs = Mapping[Hashable, Sampled]


def verdict(sweep: Sweep) -> list[str]:
    """Return what the sweep has shown, the most important first; without scores, that there are none."""
    metric, ranked = sweep.metric, sweep.ranked
    if not ranked:
        return ["No job was measured on validation rows, so nothing is compared."]
    if metric is None or not sweep.are_comparable:
        return ["The jobs were measured by different metrics or on different rows, so they are not compared."]
    every = [*sweep.jobs, *([sweep.soup] if sweep.soup else [])]
    jobs = [job for job in every if job.score is not None and job.predictions is not None]
    sampled = bootstrap([job.predictions.rows for job in jobs if job.predictions is not None])
    samples = {id(job): of_job for job, of_job in zip(jobs, sampled, strict=True)}
    chosen = sweep.chosen
    sentences = list(_winner(sweep, metric, samples) if chosen is None else _chosen(sweep, chosen, metric, samples))
    if len(sweep.axes) > 1:
        sentences += _axes(sweep, metric, samples)
    return sentences


def interval(found: Difference, metric: Metric) -> str:
    """Return a difference with its interval, as it is shown everywhere: "0.42 [0.11, 0.73]"."""
    return f"{metric.format(found.mean)} [{metric.format(found.low)}, {metric.format(found.high)}]"


def _winner(sweep: Sweep, metric: Metric, samples: Mapping[int, Sampled]) -> Iterator[str]:
    """Yield which setting is the best, and whether it is better than the second and than the default."""
    ranked, default = sweep.ranked, sweep.default
    best = ranked[0]
    assert best.mean is not None
    seeds = f"{len(best.scores)} seeds" if len(best.scores) > 1 else "one seed"
    defaults = [one for one in ranked if default is not None and default.items() <= one.values.items()]
    named = ", and is the default" if best in defaults and len(ranked) > 1 else ""
    yield f"{best.name} has the best mean {metric.label}: {metric.format(metric.score(best.mean))} ({seeds}){named}."
    if len(ranked) < 2:
        return
    others = {"the second and the default" if ranked[1] in defaults else "the second": ranked[1]}
    if defaults and defaults[0] not in ranked[:2]:
        others["the default"] = defaults[0]
    has_one_seed = False
    for called, other in others.items():
        comparisons = len(ranked) - 1 if "default" in called else 1  # the best of many is a lucky one
        found = _difference(_by(best.jobs, samples, ""), _by(other.jobs, samples, ""), metric, comparisons)
        if found is None:
            yield f"Of {called}, {other.name}, the predictions were not saved, so the difference may be chance."
        elif found.is_clear:
            yield f"It is better than {called}, {other.name}, by {interval(found, metric)}."
        else:
            yield (
                f"That it is better than {called}, {other.name}, may be chance: the difference is "
                f"{interval(found, metric)}."
            )
        has_one_seed |= found is not None and found.seeds == 1
    if default is not None and not defaults:
        yield f"The default, {as_typed(default)}, has no score here, so nothing is compared with it."
    if has_one_seed:
        how = f"in a sweep of {best.name} without hparams=optuna, add" if sweep.is_search else "add"
        yield f"With one seed, how much seeds differ is unknown and not in the interval: {how} train.seed=1,2,3."


def _chosen(sweep: Sweep, chosen: Setting[Job], metric: Metric, samples: Mapping[int, Sampled]) -> Iterator[str]:
    """Yield what a search with a budget has chosen, and whether its model is better than the settings as they are."""
    assert chosen.mean is not None
    scores = ", ".join(metric.format(metric.score(score)) for score in chosen.scores)
    mean = metric.format(metric.score(chosen.mean))
    yield f"The search has chosen {chosen.name}: mean {metric.label} {mean} ({scores})."
    model, own = sweep.model, sweep.own
    if model is None or model.score is None:
        return
    yield f"The model is {_what(model)}: {_scores(model, metric)}."
    if own is None or own.score is None or own is model:
        return
    called = f"that of the settings as they are ({_scores(own, metric)})"
    of_both: list[Runs] = [{"": samples[id(job)]} if id(job) in samples else {} for job in (model, own)]
    found = _difference(of_both[0], of_both[1], metric)
    if found is None:
        yield f"Of {called}, the predictions were not saved, so the difference may be chance."
    elif found.is_clear:
        yield f"On the rows that chose it, it is better than {called}, by {interval(found, metric)}."
    else:
        yield f"That it is better than {called} may be chance: the difference is {interval(found, metric)}."


def _what(model: Job) -> str:
    """Return what the model of a search with a budget is."""
    try:
        soup = read_record(model.folder)["soup"]
    except (ConfigError, KeyError):  # a run's, or removed
        return f"the best of the longer runs, {model.folder.name}"
    kept, tried = len(soup["ingredients"]), len(soup.get("tried", soup["ingredients"]))
    if kept == 1:
        return f"the best of {tried} longer runs, which the weights of no other make better"
    return f"the mean of the weights of {kept} of {tried} longer runs"


def _scores(job: Job, metric: Metric) -> str:
    """Return what a model scores on validation and, if it was measured, on the test set."""
    score, test = metric.format(metric.score(job.score or 0.0)), job.result.get("test_after")
    tested = "" if test is None else f", {TEST_METRIC.format(test)} on the test set"
    return f"{metric.label} {score}{tested}"


def _axes(sweep: Sweep, metric: Metric, samples: Mapping[int, Sampled]) -> Iterator[str]:
    """Yield, for each setting that varies, whether its values differ, over all combinations of the others."""
    for axis, values in sweep.axes.items():
        by_value = {
            value: _by([job for job in sweep.jobs if job.settings.get(axis) == value], samples, axis)
            for value in values
        }
        common = set.intersection(*(set(runs) for runs in by_value.values()))
        if not common:
            continue
        means = {value: sum(metric.score(runs[unit].metric) for unit in common) for value, runs in by_value.items()}
        best, worst = max(means, key=lambda value: means[value]), min(means, key=lambda value: means[value])
        first, second = ({unit: by_value[value][unit] for unit in common} for value in (best, worst))
        found = _difference(first, second, metric, comparisons=len(values) * (len(values) - 1) // 2)
        assert found is not None
        over = f"over {len(common)} run{'s' if len(common) > 1 else ''} each"
        if found.is_clear:
            yield f"{axis} matters: {best} is better than {worst} by {interval(found, metric)}, {over}."
        else:
            yield (
                f"{axis} makes no difference that this sweep can show: {best} against {worst} is "
                f"{interval(found, metric)}, {over}."
            )


def _by(jobs: list[Job], samples: Mapping[int, Sampled], axis: str) -> Runs:
    """Return the runs of jobs by the settings other than `axis`, or for "", by their seed."""
    return {
        tuple(sorted(item for item in job.settings.items() if item[0] != axis)) if axis else job.seed: samples[id(job)]
        for job in jobs
        if id(job) in samples
    }


def _difference(first: Runs, second: Runs, metric: Metric, comparisons: int = 1) -> Difference | None:
    if not first or not second:
        return None
    return difference(first, second, comparisons=comparisons, sign=1 if metric.higher_is_better else -1)
