"""Markdown of model cards."""

from __future__ import annotations

import html
from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of cells that are Markdown, on one line each; a | in them ends no cell."""
    lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in (header, *rows)]
    lines.insert(1, f"|{'---|' * len(header)}")
    return "\n".join(lines)


def plain(text: str) -> str:
    """Return a text in which nothing is a tag."""
    return html.escape(text, quote=False)


def literal(text: str) -> str:
    """Return a text that is shown as it is: nothing in it is Markdown or a tag."""
    escaped = html.escape(text, quote=False)
    return "<code>" + "".join(f"&#{ord(char)};" if char in "|*_`[]\\~$" else char for char in escaped) + "</code>"
