"""The page of several runs: what differs in their settings, their scores, and on which pairs they disagree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from angle.config.keys import flatten
from angle.config.overrides import format_value
from angle.evaluation.comparison import bootstrap, difference
from angle.evaluation.pairs import Pairs
from angle.figures import Figure, line_chart
from angle.reports.page import Figures, Page, Section, Table, Text
from angle.reports.run_page import score_rows
from angle.reports.run_record import RunRecord
from angle.sweeps.verdict import interval

#: Pairs shown on which two runs disagree.
DISAGREEMENTS = 15
#: Settings that name a run and change nothing in it.
NAMES_ONLY = frozenset({"train.output_dir", "train.resume"})


def comparison_page(runs: Sequence[RunRecord]) -> Page:
    """Return the page of two or more runs."""
    return Page(
        title=f"{len(runs)} runs compared",
        subtitle=", ".join(run.name for run in runs),
        sections=[
            Section("Scores", list(_scores(runs))),
            Section("What differs in their settings", list(_differing_settings(runs))),
            Section("Curves", list(_curves(runs))),
            Section("Where they disagree", list(_disagreements(runs))),
        ],
    )


def _scores(runs: Sequence[RunRecord]) -> Iterator[Text | Table]:
    problems = [f"{run.name}: {problem}" for run in runs for problem in run.problems]
    if problems:
        yield Text(problems, "warning")
    yield Text(list(_differences(runs)), "verdict")
    rows = [(run.name, name, before, after, gain) for run in runs for name, before, after, gain in score_rows(run)]
    if rows:
        yield Table(["run", "measured", "before training", "after", "difference"], rows, "Before and after training")


def not_comparable(first: RunRecord, second: RunRecord) -> str | None:
    """Return why two runs cannot be compared row by row, None if they can."""
    if first.after is None or second.after is None:
        without = first if first.after is None else second
        return f"{without.name} has no predictions for single rows"
    if first.after.metric != second.after.metric:
        return f"one is measured by {first.metric.label}, the other by {second.metric.label}"
    if first.after.fingerprint != second.after.fingerprint:
        counts = len(first.after.rows.values), len(second.after.rows.values)
        how = (
            f"{counts[0]:,} and {counts[1]:,} of them"
            if counts[0] != counts[1]
            else f"{counts[0]:,} each, with other texts or labels"
        )
        return f"they are measured on different validation rows ({how})"
    return None


def _differences(runs: Sequence[RunRecord]) -> Iterator[str]:
    first = runs[0]
    for other in runs[1:]:
        problem = not_comparable(first, other)
        if problem is not None:
            yield f"{other.name} is not compared with {first.name}: {problem}."
            continue
        assert first.after is not None
        assert other.after is not None
        metric = first.metric
        of_other, of_first = bootstrap([other.after.rows, first.after.rows])
        found = difference({0: of_other}, {0: of_first}, sign=1 if metric.higher_is_better else -1)
        if not found.is_clear:
            yield (
                f"That {other.name} and {first.name} differ in {metric.label} may be chance: the difference is "
                f"{interval(found, metric)}."
            )
        else:
            better, worse = (other, first) if found.mean > 0 else (first, other)
            yield (
                f"{better.name} is better than {worse.name}: {metric.label} of {other.name} less that of {first.name} "
                f"is {interval(found, metric)}."
            )
    yield "Brackets: 95% intervals over the choice of validation rows (paired bootstrap). Seeds may differ by more."


def _differing_settings(runs: Sequence[RunRecord]) -> Iterator[Table | Text]:
    settings = [{} if run.config is None else flatten(run.config) for run in runs]
    names = dict.fromkeys(name for values in settings for name in values)
    rows = [
        (name, *(format_value(values.get(name)) for values in settings))
        for name in names
        if name not in NAMES_ONLY and len({format_value(values.get(name)) for values in settings}) > 1
    ]
    if rows:
        yield Table(["setting", *(run.name for run in runs)], rows, "Settings with different values")
    else:
        yield Text(["Their settings are the same."])
    data = [run.record.get("data") or {} for run in runs]
    changed = [
        name for name in dict.fromkeys(n for one in data for n in one) if len({one.get(name) for one in data}) > 1
    ]
    if changed:
        yield Text([f"The rows of {', '.join(f'data.{name}' for name in changed)} differ."], "warning")


def _curves(runs: Sequence[RunRecord]) -> Iterator[Figures]:
    figures = []
    metric = runs[0].metric
    for name, title in ((f"valid/{metric.name}", f"{metric.label} on validation"), ("loss", "Loss")):
        times = 100.0 if metric.is_fraction and name != "loss" else 1.0
        rows = [
            {"run": run.name, "step": step, "value": times * value} for run in runs for step, value in run.series(name)
        ]
        if len({row["step"] for row in rows}) > 1:
            axis = metric.label if name != "loss" else "loss"
            chart = line_chart(rows, "value", axis, "run")
            figures.append(Figure(name.replace("/", "-"), title, "A line for each run.", chart, rows))
    if figures:
        yield Figures(figures)


def _disagreements(runs: Sequence[RunRecord]) -> Iterator[Table]:
    first = runs[0]
    for other in runs[1:]:
        if not_comparable(first, other) is not None or first.after is None or other.after is None:
            continue
        pairs = Pairs.of(first.after), Pairs.of(other.after)
        if pairs[0].labels is None:
            continue
        texts, errors = first.after.texts, [one.errors() for one in pairs]
        order = np.argsort(-np.abs(errors[0] - errors[1]), kind="stable")[:DISAGREEMENTS]
        rows = []
        for at in order:
            nearer = other if abs(errors[0][at]) > abs(errors[1][at]) else first
            cosines = [f"{100 * one.cosines[at]:.1f}" for one in pairs]
            pair = texts[pairs[0].left[at]], texts[pairs[0].right[at]]
            rows.append([*pair, f"{pairs[0].labels[at]:.3g}", *cosines, nearer.name])
        columns = ["first text", "second text", "label", f"{first.name}: cosine x 100", f"{other.name}: cosine x 100"]
        caption = f"Pairs whose place in the order of similarities differs most between {first.name} and {other.name}"
        yield Table([*columns, "nearer to the label"], rows, caption)
