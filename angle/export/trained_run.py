"""What a run's folder has to tell in a model card."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from angle.config import DataConfig, HubConfig, SourceConfig, TrainConfig
from angle.config.record import read_config, read_record
from angle.data.sources import open_tables
from angle.errors import DataError
from angle.export.example import Example
from angle.structures import FORMATS
from angle.tracking.metrics_file import read_metrics

#: Rows to choose samples from, how many are chosen, and characters of a text that are shown.
SAMPLED_ROWS, NUM_SAMPLES, SHOWN_CHARACTERS = 200, 3, 160


@dataclass(frozen=True)
class TrainedRun:
    """The run that trained a model."""

    config: TrainConfig
    """Its settings, with everything decided."""
    record: dict[str, Any]
    """The content of its run.json."""
    log: list[dict[str, Any]] = field(default_factory=list)
    """The lines of its metrics.jsonl."""
    samples: list[dict[str, str]] = field(default_factory=list)
    """Some training rows; none unless hub.samples=true."""

    @property
    def example(self) -> Example | None:
        """What its model makes of the example sentences; None if that was not recorded."""
        recorded = self.record.get("example")
        return None if recorded is None else Example(**recorded)

    @property
    def soup(self) -> dict[str, Any] | None:
        """What it is made of, if it is a soup: the mean of other runs, with the settings of the first."""
        return self.record.get("soup")

    def logged(self, name: str, step: int) -> float | None:
        """Return the value that a metric had at a step, None if it was not measured then."""
        values = [line[name] for line in self.log if line["step"] == step and line.get(name) is not None]
        return values[-1] if values else None


def read_trained_run(folder: Path, hub: HubConfig | None = None) -> TrainedRun:
    """Return what a finished run's folder tells.

    Args:
        folder: the run's.
        hub: what the card may show and must say; None: as the run's own settings have it.

    """
    config = read_config(folder)
    config = config if hub is None else replace(config, hub=hub)
    samples = read_samples(config.data, config.losses[0].format) if config.hub.samples else []
    return TrainedRun(config, read_record(folder), read_metrics(folder), samples)


def find_trained_run(folder: Path) -> TrainedRun | None:
    """Return what `read_trained_run` does; None for a folder that is not that of a finished run.

    Raises:
        ConfigError: its settings or its record are not as they were written.

    """
    return read_trained_run(folder) if read_record(folder).get("finished") else None


def read_samples(data: DataConfig, format_name: str) -> list[dict[str, str]]:
    """Return short training rows, of several sources of the first, by column; none if they are no longer there."""
    source = next(iter(data.train.by_name().values()))
    try:
        are_files = all(Path(name).is_file() for name in SourceConfig.names(source))
        table = open_tables(source, "train", format_name, limits=data.limits, streaming=are_files)[0]
        data_format = FORMATS[format_name]
        columns = {role: data_format.columns_of(role, table.columns)[0] for role in data_format.columns}
        rows = [
            {role: _shown(row.get(column)) for role, column in columns.items()}
            for _, row in islice(table.rows, SAMPLED_ROWS)
        ]
    except (DataError, OSError):
        return []
    shortest = sorted(range(len(rows)), key=lambda number: sum(map(len, rows[number].values())))[:NUM_SAMPLES]
    return [rows[number] for number in sorted(shortest)]


def _shown(cell: object) -> str:
    """Return a cell on one line, shortened; of several texts the first."""
    text = " ".join(str(cell[0] if isinstance(cell, list) and cell else cell).split())
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 1]}…"
