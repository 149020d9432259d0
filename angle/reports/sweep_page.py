"""The page of a sweep: which setting is best, whether that may be chance, and what mattered."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from angle.evaluation.evaluator import Metric
from angle.figures import Figure, Row, category, chart, heat_map, line_chart, quantity
from angle.reports.page import Figures, Page, Section, Table, Text
from angle.sweeps.settings import as_typed
from angle.sweeps.sweep import Sweep, number

#: Curves that are told apart by colour.
COLOURED = 7
#: The best and all others, where curves are too many for colours.
BEST, OTHERS = "the best setting", "other settings"


def sweep_page(sweep: Sweep, sentences: list[str]) -> Page:
    """Return the page of a sweep, whose verdict is `sentences`."""
    counts = {status: sum(job.status == status for job in sweep.jobs) for status in ("failed", "pruned", "running")}
    count = f"{len(sweep.jobs)} jobs of {len(sweep.settings)} settings"
    return Page(
        title=f"Sweep {sweep.folder.resolve().name}",
        subtitle=", ".join([count, *(f"{number} {status}" for status, number in counts.items() if number)]),
        sections=[
            Section("Verdict", list(_verdict(sweep, sentences))),
            Section("Settings", list(_table(sweep))),
            Section("Where the time went", list(_stages(sweep))),
            Section("What the settings do", list(_effects(sweep.explored))),
            Section("Learning curves", list(_curves(sweep))),
            Section("Failures", list(_failures(sweep))),
            Section("Jobs", list(_jobs(sweep)), is_folded=True),
        ],
    )


def _verdict(sweep: Sweep, sentences: list[str]) -> Iterator[Text]:
    if sweep.jobs and all(job.error is not None for job in sweep.jobs):
        yield Text(["All jobs failed; the first error of each is below."], "warning")
        return
    if sentences:
        yield Text(sentences, "verdict")
    if any("[" in sentence for sentence in sentences):
        seeds = " and of seeds (Student's t)" if sweep.has_seeds else ""
        yield Text([
            f"In brackets: 95% intervals for the true difference, over the choice of validation rows (paired bootstrap)"
            f"{seeds}."
        ])  # fmt: skip
    if sweep.problems:
        yield Text(sweep.problems, "warning")


def _shown(metric: Metric | None, score: float | None) -> str:
    if score is None:
        return "–"
    return f"{score:.4g}" if metric is None else metric.format(metric.score(score))


def _table(sweep: Sweep) -> Iterator[Table]:
    metric, axes = sweep.metric, list(sweep.axes)
    rows = []
    for setting in [*sweep.ranked, *(one for one in sweep.settings if one.mean is None)]:
        tests = [job.result["test_after"] for job in setting.jobs if job.result.get("test_after") is not None]
        rows.append([
            *(setting.values.get(axis, "") for axis in axes),
            _shown(metric, setting.mean),
            "–" if setting.deviation is None or metric is None else metric.format(setting.deviation),
            str(len(setting.scores)),
            f"{100 * np.mean(tests):.2f}" if tests else "–",
            f"{np.mean([job.seconds for job in setting.jobs]):.0f}",
            ", ".join(sorted({job.status for job in setting.jobs} - {"finished"})),
        ])  # fmt: skip
    label = "score" if metric is None else f"mean {metric.label}"
    columns = [*axes, label, "sd", "n", "test Spearman", "seconds", "state"]
    kept = [at for at, name in enumerate(columns) if any(row[at] not in ("", "–") for row in rows) or name == label]
    yield Table([columns[at] for at in kept], [[row[at] for at in kept] for row in rows], "The best first")


def _times(metric: Metric) -> float:
    return 100.0 if metric.is_fraction else 1.0


def _points(sweep: Sweep, metric: Metric) -> list[dict[str, Any]]:
    """Return a row for each job with a score: its settings, its seed, and its score as it is shown."""
    return [
        {**job.others, "setting": setting.name, "seed": job.seed, "score": _times(metric) * metric.score(job.score)}
        for setting in sweep.settings
        for job in setting.jobs
        if job.score is not None
    ]


def _means(sweep: Sweep, metric: Metric) -> list[dict[str, Any]]:
    """Return a row for each setting with a score."""
    return [
        {
            **setting.values,
            "score": round(_times(metric) * metric.score(setting.mean), 6),
            "sd": None if setting.deviation is None else round(_times(metric) * setting.deviation, 6),
            "n": len(setting.scores),
        }
        for setting in sweep.settings
        if setting.mean is not None
    ]


def _effects(sweep: Sweep) -> Iterator[Figures]:
    metric, axes = sweep.metric, sweep.axes
    if metric is None:
        return
    figures = []
    if len(axes) == 1:
        figures.append(_one_axis(sweep, metric, *axes.items()))
    elif len(axes) == 2:
        cells = math.prod(map(len, axes.values()))
        is_grid = len(sweep.ranked) > cells / 2
        figures.append(_heat_map(sweep, metric) if is_grid else _scatter(sweep, metric))
    elif axes:
        figures.append(_parallel(sweep, metric))
    if len(axes) > 1 and any((shares := importance(sweep)).values()):
        figures.append(_importance(shares))
    if sweep.has_seeds:
        figures.append(_seeds(sweep, metric))
    if figures:
        yield Figures(figures)


def _placed(field: str, name: str, values: list[str]) -> tuple[dict[str, Any], Callable[[str], float | str]]:
    """Return where the values of a setting are drawn, numbers to scale, and what makes such a place of a value."""
    known = [as_number for value in values if (as_number := number(value)) is not None]
    if len(known) < len(values):
        return category(field, name, order=values), str
    is_logarithmic = min(known) > 0 and max(known) / min(known) >= 50
    return quantity(field, name, log=is_logarithmic), float


def _one_axis(sweep: Sweep, metric: Metric, axis: tuple[str, list[str]]) -> Figure:
    from altair import Tooltip, X, Y, YError, layer

    name, values = axis
    encoding, place = _placed("value", name, values)
    x = X(**encoding)
    rows = [
        {"value": place(row[name]), **{k: row[k] for k in ("score", "sd", "n")}}
        for row in sorted(_means(sweep, metric), key=lambda row: values.index(row[name]))
    ]
    base = chart(rows).encode(
        x=x,
        y=Y(**quantity("score", metric.label)),
        tooltip=[Tooltip(field=field, type="nominal") for field in ("value", "score", "sd", "n")],
    )
    layers = [base.mark_line(), base.mark_point(filled=True, size=50)]
    if any(row["sd"] is not None for row in rows):
        layers.insert(0, base.mark_errorbar(ticks=True).encode(yError=YError("sd:Q")))
    caption = "Means over seeds; bars are standard deviations of the seeds."
    return Figure("effect", f"{metric.label} by {name}", caption, layer(*layers), rows)


def _heat_map(sweep: Sweep, metric: Metric) -> Figure:
    across, down = sweep.axes.items()
    rows = [
        {"x": row[across[0]], "y": row[down[0]], "score": row["score"], "sd": row["sd"], "n": row["n"]}
        for row in _means(sweep, metric)
        if across[0] in row and down[0] in row
    ]
    caption = "Means over seeds; point at a cell for their spread."
    title = f"{metric.label} by {across[0]} and {down[0]}"
    return Figure("heat-map", title, caption, heat_map(rows, across, down, metric.label), rows)


def _scatter(sweep: Sweep, metric: Metric) -> Figure:
    """Return two settings whose values were drawn, with the scores as colours."""
    from altair import Color, Tooltip, X, Y

    (across, columns), (down, lines) = sweep.axes.items()
    (x, x_place), (y, y_place) = _placed("x", across, columns), _placed("y", down, lines)
    rows = [
        {"x": x_place(row[across]), "y": y_place(row[down]), "score": row["score"]}
        for row in _means(sweep, metric)
        if across in row and down in row
    ]
    drawn = (
        chart(rows)
        .mark_point(filled=True, size=140, opacity=0.9)
        .encode(
            x=X(**x),
            y=Y(**y),
            color=Color(field="score", type="quantitative", title=metric.label, scale={"scheme": "viridis"}),
            tooltip=[Tooltip(field=field, type="nominal") for field in ("x", "y", "score")],
        )
        .properties(height=300)
    )
    return Figure("scatter", f"{metric.label} by {across} and {down}", "A point for each setting.", drawn, rows)


def _parallel(sweep: Sweep, metric: Metric) -> Figure:
    from altair import Color, Tooltip, X, Y

    axes = sweep.axes
    names = [*axes, metric.label]
    angle = 0 if len(names) < 5 else -20  # or names would run into each other
    means = _means(sweep, metric)
    low, high = min(row["score"] for row in means), max(row["score"] for row in means)
    rows: list[Row] = []
    for at, row in enumerate(means):
        for name in names:
            if name in axes:
                place = axes[name].index(row.get(name, "")) / max(1, len(axes[name]) - 1)
                shown = row.get(name, "")
            else:
                place, shown = (row["score"] - low) / ((high - low) or 1), f"{row['score']:.2f}"
            rows.append({"setting": at, "axis": name, "place": place, "value": shown, "score": row["score"]})
    drawn = (
        chart(rows)
        .mark_line(opacity=0.7, point=True)
        .encode(
            x=X(**category("axis", " ", order=names, axis={"labelAngle": angle, "grid": True, "domain": False})),
            y=Y(**quantity("place", "lowest to highest value", axis={"labels": False, "ticks": False, "grid": False})),
            detail="setting:N",
            color=Color(field="score", type="quantitative", title=metric.label, scale={"scheme": "viridis"}),
            tooltip=[Tooltip(field=field, type="nominal") for field in ("axis", "value", "score")],
        )
        .properties(height=300)
    )
    caption = "A line for each setting, at its values; the lightest lines score best."
    return Figure("parallel", "Settings and scores", caption, drawn, rows)


def importance(sweep: Sweep) -> dict[str, float]:
    """Return the share of the scores' variance that each setting explains alone, less what chance would.

    That is epsilon squared, 1 - (1 - eta^2) (n - 1) / (n - k) of n runs in k groups (Kelley, 1935). Of a setting with
    many numbers, as a search tries, parts of at least two runs are what is compared; one that has too few runs for that
    is left out.
    """
    scored = [(job.others, job.score) for job in sweep.jobs if job.score is not None]
    scores = np.array([score for _, score in scored], float)
    total = ((scores - scores.mean()) ** 2).sum()
    shares = {}
    for axis, values in sweep.axes.items():
        groups = np.array([values.index(others.get(axis, "")) for others, _ in scored])
        if len(set(groups)) > min(8, len(groups) // 2):
            parts = min(4, len(groups) // 2)
            if parts < 2 or any(number(value) is None for value in values):
                continue
            groups = np.searchsorted(np.quantile(groups, np.arange(1, parts) / parts), groups)
        names = set(groups)
        between = sum((groups == g).sum() * (scores[groups == g].mean() - scores.mean()) ** 2 for g in names)
        unexplained = 1 - between / total if total > 0 else 1.0
        shares[axis] = max(0.0, float(1 - unexplained * (len(groups) - 1) / (len(groups) - len(names))))
    return shares


def _importance(shares: dict[str, float]) -> Figure:
    from altair import Tooltip, X, Y

    rows = [{"setting": name, "share": round(share, 4)} for name, share in shares.items()]
    drawn = (
        chart(rows)
        .mark_bar()
        .encode(
            x=X(
                **quantity("share", "share of the variance of scores", zero=True, axis={"format": "%", "tickCount": 5})
            ),
            y=Y(**category("setting", " ") | {"sort": "-x"}),
            tooltip=[Tooltip(field=field, type="nominal") for field in ("setting", "share")],
        )
        .properties(height=max(80, 34 * len(rows)))
    )
    caption = (
        "What each setting explains alone, beyond chance; the rest is seeds and how settings depend on each other."
    )
    return Figure("importance", "Importance of settings", caption, drawn, rows)


def _seeds(sweep: Sweep, metric: Metric) -> Figure:
    from altair import Tooltip, X, Y, layer

    order = [setting.name for setting in sweep.ranked]
    rows = [{name: row[name] for name in ("setting", "seed", "score")} for row in _points(sweep, metric)]
    base = chart(rows).encode(y=Y(**category("setting", " ", order=order, axis={"labelLimit": 240})))
    points = base.mark_point(filled=True, size=45, opacity=0.8).encode(
        x=X(**quantity("score", metric.label)),
        tooltip=[Tooltip(field=field, type="nominal") for field in ("setting", "seed", "score")],
    )
    means = base.mark_tick(thickness=2, size=18).encode(x="mean(score):Q")
    drawn = layer(means, points).properties(height=max(100, 26 * len(order)))
    return Figure("seeds", "Spread of the seeds", "A point for each run, a line at the mean.", drawn, rows)


def _curves(sweep: Sweep) -> Iterator[Figures]:
    metric, ranked = sweep.metric, sweep.ranked
    if metric is None or not ranked:
        return
    ranked += [setting for setting in sweep.settings if setting.mean is None]
    names = {id(setting): setting.name for setting in ranked}
    if len(ranked) > COLOURED:
        names = {id(setting): BEST if setting is ranked[0] else OTHERS for setting in ranked}
    rows = [
        {
            "setting": names[id(setting)],
            "run": f"{setting.name} {job.seed}",
            "step": step,
            "value": _times(metric) * value,
        }
        for setting in reversed(ranked)  # the best is drawn last, above the others
        for job in setting.jobs
        for step, value in job.learning_curve(metric.name)
    ]
    if len({row["step"] for row in rows}) < 2:
        return
    lines = (
        line_chart(rows, "value", metric.label, "setting", list(dict.fromkeys(names.values())))
        .encode(detail="run:N")
        .properties(height=300)
    )
    caption = "A line for each run." + (f" Only {BEST} has its own colour." if len(ranked) > COLOURED else "")
    yield Figures([Figure("learning-curves", f"{metric.label} on validation", caption, lines, rows)])


def _stages(sweep: Sweep) -> Iterator[Table]:
    """Yield what the stages of a search with a budget took."""
    budget = sweep.budget
    if budget is None:
        return
    rows = [
        (stage.name, *(str(number or "") for number in (len(stage.folders), stage.steps)), f"{stage.seconds / 60:.1f}")
        for stage in budget.stages
    ]
    rows.append(("together", "", "", f"{budget.spent / 60:.1f} of {budget.seconds / 60:.0f}"))
    yield Table(["stage", "runs", "steps of each", "minutes"], rows, "The stages of the search")


def _failures(sweep: Sweep) -> Iterator[Table]:
    rows = [(as_typed(job.settings), job.error) for job in sweep.jobs if job.error is not None]
    if rows:
        yield Table(["job", "first line of its error"], rows, "Jobs that failed")


def _jobs(sweep: Sweep) -> Iterator[Table]:
    metric = sweep.metric
    rows = [
        (as_typed(job.settings), _shown(metric, job.score), f"{job.seconds:.0f}", job.status, str(job.folder))
        for job in sweep.jobs
    ]
    yield Table(["job", "score", "seconds", "status", "folder"], rows, "All jobs")
