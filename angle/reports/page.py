"""A page: one HTML file that needs nothing else, whatever texts it shows."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.resources import files
from typing import Any

from angle.cache import cache_folder
from angle.figures import Figure, theme
from angle.files import make_folder, write_durably


@dataclass(frozen=True)
class Text:
    """Sentences, a paragraph each."""

    sentences: Sequence[str]
    kind: str = "plain"
    """plain, warning or verdict."""
    template: str = field(default="text", init=False)


@dataclass(frozen=True)
class Table:
    """A table whose columns can be sorted."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str
    template: str = field(default="table", init=False)

    def is_numeric(self, column: int) -> bool:
        """Return whether a column has numbers, which stand at its right."""
        cells = [row[column] for row in self.rows]
        return any(cell[-1:].isdigit() for cell in cells) and all(re.fullmatch(r"[+\-−–\d.,% ]*", c) for c in cells)


@dataclass(frozen=True)
class Figures:
    """Charts beside each other where there is room."""

    figures: Sequence[Figure]
    template: str = field(default="figures", init=False)


@dataclass(frozen=True)
class Commands:
    """What to type, or other text in which spaces count."""

    text: str
    template: str = field(default="commands", init=False)


Block = Text | Table | Figures | Commands


@dataclass(frozen=True)
class Section:
    """A part of a page."""

    title: str
    blocks: Sequence[Block]
    is_folded: bool = False
    """Whether a reader must open it."""

    @property
    def anchor(self) -> str:
        """The name by which links lead here."""
        return re.sub(r"\W+", "-", self.title.lower()).strip("-")


@dataclass(frozen=True)
class Page:
    """A page; sections without blocks are left out."""

    title: str
    subtitle: str
    sections: Sequence[Section]

    @property
    def figures(self) -> list[Figure]:
        """All charts."""
        blocks = [block for section in self.sections for block in section.blocks]
        return [figure for block in blocks if isinstance(block, Figures) for figure in block.figures]

    def html(self) -> str:
        """Return the page."""
        from jinja2 import Environment, PackageLoader

        environment = Environment(
            loader=PackageLoader("angle.reports", "assets"), autoescape=True, trim_blocks=True, lstrip_blocks=True
        )
        return environment.get_template("page.html.jinja").render(
            page=self,
            sections=[section for section in self.sections if section.blocks],
            style=_asset("page.css"),
            script=_asset("page.js"),
            plotting=_plotting_script() if self.figures else "",
            specs=_json({figure.name: figure.spec() for figure in self.figures}),
            themes=_json({"light": theme(dark=False), "dark": theme(dark=True)}),
            version=version("angle-hydra"),
        )


def _json(value: Any) -> str:
    """Return JSON that can stand in a page: no text in it ends the script."""
    return json.dumps(value).replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _asset(name: str) -> str:
    return (files("angle.reports") / "assets" / name).read_text(encoding="utf-8")


def _plotting_script() -> str:
    """Return Vega-Lite as a script; it takes seconds to put together, so that is done once a machine."""
    import vl_convert

    file = cache_folder("plotting") / f"vega-{version('vl-convert-python')}.js"
    if not file.is_file():
        make_folder(file.parent)
        write_durably(file, vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"))
    return file.read_text(encoding="utf-8")
