"""Figures: Altair charts, with the numbers that they show and a sentence for who cannot see them."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import altair as alt

#: A row of the numbers behind a figure.
Row = Mapping[str, Any]
HEIGHT = 220
#: Characters of a name of which a legend has one a line.
LONG_NAME = 30
#: Colours that people tell apart whatever they see (Okabe and Ito, 2008), for a light and a dark page.
LIGHT_COLOURS = ("#0072B2", "#D55E00", "#007A5A", "#A8508A", "#8A6D00", "#3A8FB7", "#5F5F5F")
DARK_COLOURS = ("#56B4E9", "#E69F00", "#2FC49A", "#E397C3", "#F0E442", "#9AD0F5", "#BBBBBB")


@dataclass(frozen=True)
class Figure:
    """A chart."""

    name: str
    """Name of its files."""
    title: str
    caption: str
    """What is to be seen, in a sentence."""
    chart: alt.TopLevelMixin
    rows: Sequence[Row]
    """The numbers that it shows."""

    def spec(self) -> dict[str, Any]:
        """Return the chart for Vega-Lite, as wide as its place."""
        spec: dict[str, Any] = self.chart.to_dict()
        return spec | {"width": "container", "description": f"{self.title}. {self.caption}"}

    def csv(self) -> str:
        """Return the numbers as a table."""
        text = StringIO(newline="")
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        writer = csv.DictWriter(text, columns)
        writer.writeheader()
        writer.writerows(self.rows)
        return text.getvalue()

    def png(self) -> bytes:
        """Return the chart as a picture."""
        import vl_convert

        spec = self.spec() | {"width": 560, "background": "white"}
        spec["config"] = spec.get("config", {}) | theme(dark=False)
        picture: bytes = vl_convert.vegalite_to_png(spec, scale=2)
        return picture


def theme(*, dark: bool) -> dict[str, Any]:
    """Return Vega-Lite's configuration for a light or a dark page."""
    text, grid = ("#e8e8e8", "#444444") if dark else ("#1f1f1f", "#dddddd")
    colours = DARK_COLOURS if dark else LIGHT_COLOURS
    labels = {"labelColor": text, "titleColor": text, "labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": 500}
    return {
        "background": "transparent",
        "font": "system-ui, sans-serif",
        "view": {"stroke": None},
        "axis": labels
        | {"gridColor": grid, "domainColor": grid, "tickColor": grid, "labelLimit": 140, "labelFlush": False},
        "legend": labels | {"orient": "bottom", "labelLimit": 260, "columns": 2, "title": None},
        "mark": {"color": colours[0]},
        "text": {"color": text},
        "rule": {"color": text},
        "range": {
            "category": list(colours),
            "heatmap": {"scheme": "viridis"},
            "ramp": {"scheme": "viridis"},
        },
    }


def chart(rows: Sequence[Row]) -> alt.Chart:
    """Return an empty chart of these rows."""
    import altair as alt

    return alt.Chart(alt.InlineData(values=[dict(row) for row in rows])).properties(height=HEIGHT)


def quantity(name: str, title: str, *, log: bool = False, zero: bool = False, **more: Any) -> dict[str, Any]:
    """Return the encoding of a number."""
    scale = {"type": "log"} if log else {"zero": zero}
    return {"field": name, "type": "quantitative", "title": title, "scale": scale} | more


def category(name: str, title: str | None = None, *, order: Sequence[str] | None = None, **more: Any) -> dict[str, Any]:
    """Return the encoding of a name, in the given order or that of the rows."""
    sort = list(order) if order is not None else None
    return {"field": name, "type": "nominal", "title": title or name, "sort": sort} | more


def line_chart(
    rows: Sequence[Row], value: str, title: str, group: str | None = None, order: Sequence[str] | None = None
) -> alt.LayerChart | alt.FacetChart:
    """Return curves over the steps, with a point for each value, coloured by group."""
    from altair import Color, Tooltip, X, Y, layer

    base = chart(rows).encode(
        x=X(**quantity("step", "step")),
        y=Y(**quantity(value, title)),
        tooltip=[Tooltip(field=name, type="nominal") for name in (*([group] if group else []), "step", value)],
    )
    if group is not None:
        longest = max((len(str(name)) for name in order or ()), default=0)
        legend = {"columns": 1, "labelLimit": 320} if longest > LONG_NAME else {}
        base = base.encode(color=Color(**category(group, order=order, legend=legend)))
    return layer(base.mark_line(strokeWidth=1.6), base.mark_point(filled=True, size=16))


def heat_map(
    rows: Sequence[Row], across: tuple[str, Sequence[str]], down: tuple[str, Sequence[str]], title: str
) -> alt.LayerChart | alt.FacetChart:
    """Return a cell for each row, coloured by its score, which stands in it; those that are `framed` have a frame.

    Args:
        rows: each with `x`, `y`, `score`, and whatever is shown to who points at a cell.
        across: what x is, and its values from left to right.
        down: what y is, and its values from the bottom upwards.
        title: what the score is.

    """
    from altair import Color, Text, Tooltip, X, Y, condition, datum, layer, value

    middle = (min(row["score"] for row in rows) + max(row["score"] for row in rows)) / 2
    base = chart(rows).encode(
        x=X(**category("x", across[0], order=across[1], axis={"labelAngle": 0})),
        y=Y(**category("y", down[0], order=down[1][::-1])),
        tooltip=[Tooltip(field=field, type="nominal") for field in rows[0]],
    )
    colour = Color(field="score", type="quantitative", title=title, scale={"scheme": "viridis"})
    text = Text(field="score", type="quantitative", format=".2f")
    numbers = base.mark_text(fontSize=13).encode(
        text=text, color=condition(datum.score < middle, value("white"), value("black"))
    )
    cells, frames = base.mark_rect().encode(color=colour), base.mark_rect(filled=False, stroke="red", strokeWidth=2)
    layers = [cells, numbers]
    if any(row.get("framed") for row in rows):
        layers.append(frames.transform_filter(datum.framed))
    return layer(*layers).properties(height=max(160, 44 * len(down[1])))
