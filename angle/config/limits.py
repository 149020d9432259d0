"""Bounds on what is read of data, far above what texts need: a damaged or hostile file ends in a sentence."""

from __future__ import annotations

from dataclasses import dataclass

from angle.config.values import check_fields, declared


@dataclass
class LimitsConfig:
    """What a source may have at most."""

    text_length: int = declared(10_000_000, at_least=1)
    """Characters of a text. (The tokenizer takes a second and 60 MB for a million.)"""
    row_length: int = declared(2**25, at_least=1)
    """Characters of a row of a JSON, CSV or TSV file."""
    columns: int = declared(10_000, at_least=1)
    """Columns."""

    def check(self, group: str) -> None:
        """Raise ConfigError if nothing could be read; `group` is where these settings are in their script."""
        check_fields(group, self)
