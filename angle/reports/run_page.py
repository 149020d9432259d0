"""The page of a run: how it went, what it changed, and where its model is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from angle.config import TrainConfig
from angle.config.keys import flatten
from angle.config.overrides import format_value
from angle.data.retrieval import RETRIEVAL
from angle.evaluation.evaluator import Metric
from angle.evaluation.pairs import NEIGHBOURS, Pairs, alignment_and_uniformity, neighbours_table, plane
from angle.evaluation.run_evaluators import TEST_METRIC
from angle.figures import Figure, Row, category, chart, line_chart, quantity
from angle.files import relative_to_cwd
from angle.reports.page import Commands, Figures, Page, Section, Table, Text
from angle.reports.run_record import RunRecord
from angle.training.result import Result
from angle.training.summary import use_commands, warnings

#: Bins of a histogram.
BINS = 24
#: The worst pairs that are shown, and points on a map.
WORST, POINTS = 15, 500
#: Curves beside the losses: the metric's name and its axis.
CURVES = (
    ("learning_rate", "learning rate"),
    ("gradient_norm", "gradient norm"),
    ("texts_per_second", "texts a second"),
    ("padding_share", "share of padding"),
    ("memory_gib", "memory (GiB)"),
)


def run_page(run: RunRecord) -> Page:
    """Return the page of a run."""
    config = run.config
    model = "" if config is None else f"{config.model.name_or_path.rpartition('/')[2]}, "
    state = f"{run.last_step:,} steps" + ("" if run.record.get("finished") else ", not finished")
    if run.soup is not None:
        state = f"the mean of the weights of {len(run.soup['ingredients'])} runs"
    return Page(
        title=f"{'Run' if run.soup is None else 'Soup'} {run.name}",
        subtitle=f"{model}{state}, started {run.record.get('started', 'at an unknown time')}",
        sections=[
            Section("Outcome", list(_outcome(run))),
            Section("Ingredients", list(_ingredients(run))),
            Section("Curves", list(_curves(run))),
            Section("Similarities", list(_similarities(run))),
            Section("Map", list(_maps(run))),
            Section("Nearest neighbours", list(_neighbours(run))),
            Section("Worst pairs", list(_worst(run))),
            Section("Settings", list(_settings(run))),
            Section("Environment", list(_environment(run)), is_folded=True),
            Section("Use the model", list(_usage(run))),
        ],
    )


def score_rows(run: RunRecord) -> Iterator[tuple[str, str, str, str]]:
    """Yield what was measured: its name, the value before training, the best or last one, and their difference."""
    metric, result = run.metric, run.result
    series = dict(run.series(f"valid/{metric.name}"))
    before = series.get(0, result.get("valid_before", {}).get(metric.name))
    after = result.get("best_score") if result.get("best_score") is not None else _at(series, run.best_step)
    measured = [(f"{metric.label} on validation", before, after)]
    measured.append(("Spearman on the test set", result.get("test_before"), result.get("test_after")))
    for name, before, value in measured:
        if before is not None or value is not None:
            difference = "" if before is None or value is None else metric.format(value - before)
            if difference and not difference.startswith("-"):
                difference = f"+{difference}"
            yield (
                name,
                "–" if before is None else metric.format(before),
                "–" if value is None else metric.format(value),
                difference,
            )


def _at(series: dict[int, float], step: int | None) -> float | None:
    return series.get(step) if step in series else next(reversed(series.values()), None)


def _outcome(run: RunRecord) -> Iterator[Text | Table]:
    if run.result and run.config is not None:
        has_notes = bool(run.record.get("notes"))
        said = [
            f"{sentence[0].upper()}{sentence[1:]}"
            for sentence in warnings(Result(run.folder, **run.result), run.config, has_notes=has_notes)
        ]
        if said:
            yield Text(said, "warning")
    if run.problems:
        yield Text(run.problems, "warning")
    rows = list(score_rows(run))
    if rows:
        where = "at the end" if run.best_step is None else f"of step {run.best_step}"
        model = f"the model {where}" if run.soup is None else "the soup"
        yield Table(["measured", "before training", model, "difference"], rows, "Before and after training")
    notes = run.record.get("notes") or []
    if notes:
        when = " at the start" if run.soup is None else ""
        yield Text([f"Noted{when}: {' '.join(note.split()).removesuffix('.')}." for note in notes])
    seen = run.record.get("rows_seen") or {}
    if seen:
        total = max(1, sum(seen.values()))
        shares = [(name, f"{rows:,}", f"{rows / total:.0%}") for name, rows in seen.items()]
        yield Table(["source", "rows seen", "share"], shares, "How often each source was drawn; a row counts each time")
    seconds = run.record.get("seconds")
    if seconds:
        of_all = "" if run.soup is None else ", over all runs"
        yield Text([f"{run.record.get('texts', 0):,} texts in {_duration(seconds)} of training{of_all}."])


def _ingredients(run: RunRecord) -> Iterator[Text | Table]:
    """Yield what a soup is made of; nothing of a run that was trained."""
    soup, metric = run.soup, run.metric
    if soup is None:
        return

    def shown(value: float | None, of: Metric = metric) -> str:
        return "–" if value is None else of.format(value)

    rows = [
        (each["folder"], str(each["seed"]), f"{(1 - soup['base_share']) * each['weight']:.3f}", shown(each["score"]),
         shown(each["test_score"], TEST_METRIC))
        for each in soup["ingredients"]
    ]  # fmt: skip
    if soup["base_share"]:
        rows.append(("the model that they started from", "–", f"{soup['base_share']:.3f}", "–", "–"))
    columns = ["run", "seed", "weight", f"{metric.label} on validation", "Spearman on the test set"]
    yield Table(columns, rows, f"What was averaged ({soup['method']}), and what each run measured of its own model")
    tried = [
        (each["folder"], shown(each["score"]), shown(each["soup_score"]), "yes" if each["kept"] else "no")
        for each in soup.get("tried", [])
    ]
    if tried:
        columns = ["run", f"its {metric.label}", "the soup with it", "kept"]
        yield Table(columns, tried, "What was tried, in this order")
    yield Text([f"Settings and rows below are those of {soup['settings_of']}."])


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )


def _curves(run: RunRecord) -> Iterator[Figures]:
    figures = [*_validation_curves(run)]
    terms = [
        name for name in dict.fromkeys(key for line in run.metrics for key in line) if name.split("/")[0] == "loss"
    ]
    for name in terms:
        title = "Loss" if name == "loss" else f"Loss term {name.removeprefix('loss/')}"
        caption = "The weighted sum of all terms." if name == "loss" else "Before its weight."
        if name.startswith("loss/source/"):
            title, caption = f"Loss of {name.removeprefix('loss/source/')}", "The weighted sum in its batches."
        figures += _curve(run, name, "loss", title, f"{caption} Means between two reports.")
    for name, axis in CURVES:
        figures += _curve(run, name, axis, axis[0].upper() + axis[1:], "")
    if figures:
        yield Figures(figures)


def _curve(run: RunRecord, name: str, axis: str, title: str, caption: str) -> Iterator[Figure]:
    rows = [{"step": step, "value": value} for step, value in run.series(name)]
    if len(rows) > 1 and any(row["value"] for row in rows):
        yield Figure(name.replace("/", "-"), title, caption, line_chart(rows, "value", axis), rows)


def _validation_curves(run: RunRecord) -> Iterator[Figure]:
    from altair import layer, value

    metric = run.metric
    times = float(metric.format(1).replace(",", ""))
    rows: list[Row] = [
        {"step": step, "value": times * score, "used": step == run.best_step}
        for step, score in run.series(f"valid/{metric.name}")
    ]
    if len(rows) < 2:
        return
    lines = line_chart(rows, "value", metric.label)
    best = chart([row for row in rows if row["used"]]).mark_point(filled=True, size=140, shape="diamond")
    marked = layer(lines, best.encode(x="step:Q", y="value:Q", color=value("#D55E00")))
    caption = f"{metric.description[0].upper()}{metric.description[1:]}; the diamond is the model that was kept."
    yield Figure("validation", f"{metric.label} on validation", caption, marked, rows)


def _before_and_after(run: RunRecord) -> list[tuple[str, Any]]:
    named = (("before training", run.before), ("after training", run.after))
    return [(name, predictions) for name, predictions in named if predictions is not None]


def _similarities(run: RunRecord) -> Iterator[Figures | Table]:
    figures = []
    for name, predictions in _before_and_after(run):
        figures.append(_histogram(Pairs.of(predictions), name))
    if run.after is not None and run.after.rows.labels is not None:
        figures.append(_calibration(run))
    if figures:
        yield Figures(figures)
    rows = []
    for name, predictions in _before_and_after(run):
        measured = alignment_and_uniformity(predictions)
        if measured is not None:
            rows.append((name, f"{measured[0]:.3f}", f"{measured[1]:.3f}"))
    if rows:
        columns = ["model", "alignment: positives apart", "uniformity: texts spread"]
        yield Table(columns, rows, "Geometry; lower is better for both")


def _histogram(pairs: Pairs, when: str) -> Figure:
    from altair import Color, Tooltip, X, Y

    low, high = float(pairs.cosines.min()), float(pairs.cosines.max())
    edges = np.linspace(low, max(high, low + 1e-3), BINS + 1)
    rows = [
        {"cosine": round(float(middle), 4), "share": float(count / max(1, chosen.sum())), "pairs": name}
        for name in pairs.group_names
        for chosen in [pairs.of_group(name)]
        for middle, count in zip(
            (edges[1:] + edges[:-1]) / 2, np.histogram(pairs.cosines[chosen], edges)[0], strict=True
        )
    ]
    drawn = (
        chart(rows)
        .mark_area(opacity=0.35, line=True, interpolate="monotone")
        .encode(
            x=X(**quantity("cosine", "cosine similarity")),
            y=Y(**quantity("share", "share of the pairs", stack=None, axis={"format": "%"})),
            color=Color(**category("pairs", order=pairs.group_names)),
            tooltip=[Tooltip(field=name, type="nominal") for name in ("pairs", "cosine", "share")],
        )
    )
    title = f"Similarities {when}"
    return Figure(f"similarities-{when.split()[0]}", title, "The less the shapes overlap, the better.", drawn, rows)


def _calibration(run: RunRecord) -> Figure:
    from altair import Color, Tooltip, X, Y, YError, layer

    rows: list[Row] = []
    for name, predictions in _before_and_after(run):
        labels, cosines = predictions.rows.labels, predictions.rows.values
        edges = np.unique(np.quantile(labels, np.linspace(0, 1, 11)))
        place = np.clip(np.searchsorted(edges, labels, "right") - 1, 0, max(0, len(edges) - 2))
        for number in np.unique(place):
            chosen = place == number
            rows.append({
                "label": float(labels[chosen].mean()), "cosine": float(cosines[chosen].mean()),
                "deviation": float(cosines[chosen].std()), "pairs": int(chosen.sum()), "model": name,
            })  # fmt: skip
    base = chart(rows).encode(
        x=X(**quantity("label", "label (mean of a tenth of the pairs)")),
        y=Y(**quantity("cosine", "cosine similarity")),
        color=Color(**category("model")),
        tooltip=[Tooltip(field=name, type="nominal") for name in ("model", "label", "cosine", "deviation", "pairs")],
    )
    bars = base.mark_errorbar(opacity=0.5).encode(yError=YError("deviation:Q"))
    drawn = layer(bars, base.mark_line(), base.mark_point(filled=True))
    caption = "Similarity should rise with the label; bars are standard deviations within a tenth."
    return Figure("calibration", "Cosine against label", caption, drawn, rows)


def _maps(run: RunRecord) -> Iterator[Figures | Text]:
    from altair import Color, Tooltip, X, Y

    figures = []
    for when, predictions in _before_and_after(run):
        if len(predictions.embeddings) < 3:
            continue
        places, pairs = plane(predictions)[:POINTS], Pairs.of(predictions)
        group = {
            text: name
            for side in (pairs.right, pairs.left)
            for text, name in zip(side.tolist(), pairs.groups, strict=True)
        }
        rows = [
            {"x": round(x, 4), "y": round(y, 4), "text": predictions.texts[number], "pairs": group.get(number, "")}
            for number, (x, y) in enumerate(places.tolist())
        ]
        axis = {"labels": False, "ticks": False, "title": None, "grid": False}
        encoding = {
            "x": X(**quantity("x", "") | {"axis": axis}),
            "y": Y(**quantity("y", "") | {"axis": axis}),
            "tooltip": [Tooltip(field="text", type="nominal")],
        }
        if predictions.format == "A":
            encoding["color"] = Color(**category("pairs", order=pairs.group_names))
        drawn = chart(rows).mark_circle(size=28, opacity=0.7).encode(**encoding).properties(height=340)
        caption = "Texts by their two principal components; point at one to read it."
        figures.append(Figure(f"map-{when.split()[0]}", f"Validation texts {when}", caption, drawn, rows))
    if figures:
        yield Figures(figures)


def _neighbours(run: RunRecord) -> Iterator[Table]:
    if run.after is None:
        return
    columns, rows = neighbours_table(dict(_before_and_after(run)))
    if rows:
        yield Table(
            columns, rows, f"The {NEIGHBOURS} nearest of {len(run.after.embeddings):,} texts, with cosines x 100"
        )


def _worst(run: RunRecord) -> Iterator[Table | Text]:
    if run.after is None:
        return
    pairs, texts = Pairs.of(run.after), run.after.texts
    if pairs.labels is not None:
        errors = pairs.errors()
        order = np.argsort(-np.abs(errors), kind="stable")[:WORST]
        rows = [
            [texts[pairs.left[i]], texts[pairs.right[i]], f"{pairs.labels[i]:.3g}", f"{100 * pairs.cosines[i]:.1f}",
             "too high" if errors[i] > 0 else "too low"]
            for i in order
        ]  # fmt: skip
        columns = ["first text", "second text", "label", "cosine x 100", "its place is"]
        yield Table(columns, rows, "Pairs whose similarity is furthest from its place in the order of labels")
        return
    count = sum(group == pairs.groups[0] for group in pairs.groups)  # the positives come first
    if run.after.format == "B":
        gaps = pairs.cosines[count : 2 * count] - pairs.cosines[:count]
        order = np.argsort(-gaps, kind="stable")[:WORST]
        rows = [
            [texts[pairs.left[i]], texts[pairs.right[i]], f"{100 * pairs.cosines[i]:.1f}",
             texts[pairs.right[count + i]], f"{100 * pairs.cosines[count + i]:.1f}"]
            for i in order
        ]  # fmt: skip
        columns = ["text", "positive", "cosine x 100", "negative", "cosine x 100"]
        yield Table(columns, rows, "Triples whose negative is nearest, compared with the positive")
        return
    order = np.argsort(pairs.cosines[:count], kind="stable")[:WORST]
    rows = [[texts[pairs.left[i]], texts[pairs.right[i]], f"{100 * pairs.cosines[i]:.1f}"] for i in order]
    first, second = ("query", "passage") if run.after.format == RETRIEVAL.name else ("text", "positive")
    yield Table([first, second, "cosine x 100"], rows, "Positives that are furthest apart")


def _settings(run: RunRecord) -> Iterator[Table | Text]:
    if run.config is None:
        return
    defaults, values = flatten(TrainConfig()), flatten(run.config)
    requested = defaults if run.requested is None else flatten(run.requested)
    order = sorted(values, key=lambda name: (requested[name] == defaults[name], values[name] == defaults[name]))
    rows = [
        (name, format_value(values[name]), "" if values[name] == defaults[name] else format_value(defaults[name]))
        for name in order
    ]
    yield Table(["setting", "value", "default"], rows, "First what was asked for, then what was decided, then the rest")


def _environment(run: RunRecord) -> Iterator[Table]:
    rows = [("git commit", str(run.record["git_commit"]))] if run.record.get("git_commit") else []
    for part in ("hardware", "versions", "kernels"):
        rows += [(f"{part}: {name}", format_value(value)) for name, value in (run.record.get(part) or {}).items()]
    if rows:
        yield Table(["what", "value"], rows, "What the run was made with")


def _usage(run: RunRecord) -> Iterator[Commands]:
    if not run.record.get("finished"):
        return
    folder = relative_to_cwd(run.folder)
    yield Commands(
        f"from angle import AnglE\n\nmodel = AnglE.from_pretrained({str(folder)!r})\n"
        f'embeddings = model.encode(["first text", "second text"])\n'
    )
    commands = use_commands(Result(run.folder, **run.result), str(folder))
    yield Commands("".join(f"{' '.join(command)}\n" for command in commands))
