"""The page of mined negatives: how many there are, how near they are, and what they look like."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from angle.evaluation.predictions import MAX_CHARACTERS
from angle.figures import Figure, category, chart, quantity
from angle.mining.mine import Mining
from angle.reports.page import Figures, Page, Section, Table, Text

#: Bins of a histogram, and rows that are shown of each kind.
BINS, SHOWN = 40, 10
POSITIVE, NEGATIVE = "positives", "negatives"


def mining_page(mining: Mining) -> Page:
    """Return the page of what was mined."""
    found_by = mining.config.judge.name_or_path or mining.config.model.name_or_path
    return Page(
        title="Hard negatives",
        subtitle=f"{mining.queries:,} queries, {mining.passages:,} passages, scored by {found_by}",
        sections=[
            Section("How many", list(_counts(mining))),
            Section("How near", list(_scores(mining))),
            Section("Nearest", [_nearest(mining)]),
            Section("Samples", [_samples(mining)]),
        ],
    )


def _counts(mining: Mining) -> Iterator[Table]:
    yield Table(["rows", "number"], [(what, f"{count:,}") for what, count in mining.counts.items()], "What was written")
    if mining.left_out:
        rows = [(cause, f"{count:,}") for cause, count in mining.left_out.items()]
        yield Table(["left out by", "candidates"], rows, "Passages near a query that became no negative")


def _scores(mining: Mining) -> Iterator[Text | Figures | Table]:
    sides = {
        POSITIVE: np.array([row.scores[0] for row in mining.rows]),
        NEGATIVE: np.array([score for row in mining.rows for score in row.scores[1:]]),
    }
    yield Figures([_histogram(sides)])
    quantiles = [0, 0.1, 0.25, 0.5, 0.75, 0.9, 1]
    rows = [
        (name, f"{scores.mean():.3f}", *(f"{value:.3f}" for value in np.quantile(scores, quantiles)))
        for name, scores in sides.items()
    ]
    yield Table(["", "mean", "lowest", "10 %", "25 %", "median", "75 %", "90 %", "highest"], rows, "Scores")
    above = sum(max(row.scores[1:]) > row.scores[0] for row in mining.rows)
    yield Text(
        [
            f"In {above:,} of {len(mining.rows):,} rows ({above / len(mining.rows):.1%}) a negative scores higher than "
            f"the positive. Read some of them: many of these may answer their query. absolute_margin=0 leaves them out."
        ]
    )


def _histogram(sides: dict[str, np.ndarray[tuple[int], np.dtype[np.float64]]]) -> Figure:
    from altair import Color, Tooltip, X, Y

    both = np.concatenate(list(sides.values()))
    edges = np.linspace(both.min(), max(both.max(), both.min() + 1e-3), BINS + 1)
    rows = [
        {"score": round(float(middle), 4), "share": float(count / len(scores)), "of": name}
        for name, scores in sides.items()
        for middle, count in zip((edges[1:] + edges[:-1]) / 2, np.histogram(scores, edges)[0], strict=True)
    ]
    drawn = (
        chart(rows)
        .mark_area(opacity=0.35, line=True, interpolate="monotone")
        .encode(
            x=X(**quantity("score", "score")),
            y=Y(**quantity("share", "share", stack=None, axis={"format": "%"})),
            color=Color(**category("of", order=[NEGATIVE, POSITIVE])),
            tooltip=[Tooltip(field=name, type="nominal") for name in ("of", "score", "share")],
        )
    )
    return Figure("scores", "Scores of positives and negatives", "Hard negatives are near positives.", drawn, rows)


def _nearest(mining: Mining) -> Table:
    """Return the rows whose first negative is nearest, compared with the positive."""
    order = np.argsort([row.scores[0] - max(row.scores[1:]) for row in mining.rows], kind="stable")[:SHOWN]
    return _table(mining, order.tolist(), "Rows whose negative is nearest, compared with the positive")


def _samples(mining: Mining) -> Table:
    order = np.random.default_rng(0).permutation(len(mining.rows))[:SHOWN]
    return _table(mining, order.tolist(), "Rows by chance")


def _table(mining: Mining, numbers: list[int], caption: str) -> Table:
    rows = []
    for number in numbers:
        row = mining.rows[number]
        texts = [text[:MAX_CHARACTERS] for text in (row.query, row.positive, row.negatives[0])]
        rows.append([texts[0], texts[1], f"{row.scores[0]:.3f}", texts[2], f"{row.scores[1]:.3f}"])
    return Table(["query", "positive", "score", "first negative", "score"], rows, caption)
