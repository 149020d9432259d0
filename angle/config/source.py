"""Where rows come from: one source, or several that are mixed in training."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from angle.config.values import FORMAT_NAMES, check_fields, declared, expand_home
from angle.errors import ConfigError
from angle.prompts import as_template, checked_prompts

#: The name of the built-in source.
SAMPLE = "sample"


def label_name(label: object) -> str:
    """Return a label's name in `label_map`: a whole number has no decimal point, whatever type it is stored in."""
    return str(int(label)) if isinstance(label, float) and label.is_integer() else str(label)


@dataclass
class SourceConfig:
    """Where rows come from."""

    name_or_path: Any = None
    """A hub name, a .json/.jsonl/.csv/.tsv/.parquet file (also .gz), a folder of such files or by
    save_to_disk, `sample` (built in), or a list of these; null: none."""
    subset: str | None = None
    """The configuration of a data set on the hub, or in a folder of files."""
    split: str | None = None
    """The split; null: train for data.train, validation for data.valid and data.valid_sts, test for data.test. A plain
    file has none."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    columns: dict[str, str | None] = field(default_factory=dict)
    """Columns to rename, as {new name: existing name}: {text1: sentence1, text2: sentence2, label: score}. A column's
    own name with null leaves it out: {hard_negative: null}."""
    label_map: dict[Any, float | None] = field(default_factory=dict)
    """Numbers for labels, for example {entailment: 1, contradiction: 0, neutral: null}; null drops the row."""

    def __post_init__(self) -> None:
        self.name_or_path = expand_home("name_or_path", self.name_or_path)
        self.label_map = {label_name(label): number for label, number in self.label_map.items()}

    def check(self, group: str) -> None:
        """Raise ConfigError if its name cannot be one; `group` is where these settings are in their script."""
        value = self.name_or_path
        names = value if isinstance(value, list) else [value]
        if value is not None and not (names and all(isinstance(name, str) for name in names)):
            raise ConfigError(
                f"{group}.name_or_path={value} cannot work: give a name or path, or a list of them such as "
                f"{group}.name_or_path=[a.jsonl,b.jsonl]."
            )

    def names(self) -> list[str]:
        """Return the sources as a list, empty if there are none."""
        if self.name_or_path is None:
            return []
        return [self.name_or_path] if isinstance(self.name_or_path, str) else list(self.name_or_path)


@dataclass
class NamedSourceConfig(SourceConfig):
    """One of several sources of training rows: what it has of its own."""

    prompt: str | None = None
    """The template of its texts, in place of model.prompt and model.prompts; it is not saved with the model."""
    prompts: dict[str, str] = field(default_factory=dict)
    """Templates by role, in place of those of model.prompts; they are not saved with the model."""
    format: str = declared("auto", choices=("auto", *FORMAT_NAMES))
    """A, B, C or auto (from the columns)."""
    weight: float | None = declared(None, at_least=0)
    """Its share of the rows in an epoch, relative to the other sources' weights; null: as many rows as it has."""
    batch_size: int | None = declared(None, at_least=1)
    """Rows per process in a batch of this source; null: train.batch_size."""
    loss: dict[str, float | None] = field(default_factory=dict)
    """Settings of `loss` that differ for this source, such as {ibn_w: 10, positive_above: 4}."""


@dataclass
class TrainSourceConfig(SourceConfig):
    """Where training rows come from."""

    sources: dict[str, NamedSourceConfig] = field(default_factory=dict)
    """Several sources by name, in place of `name_or_path`: {sts: {name_or_path: a.jsonl}, nli: {name_or_path: b.jsonl,
    weight: 2}}. Each has what data.train has, and templates, format, weight, batch_size and loss."""

    def names(self) -> list[str]:
        """Return the names or paths of all sources as a list, empty if there are none."""
        return [name for source in self.by_name().values() for name in SourceConfig.names(source)]

    def by_name(self) -> dict[str, SourceConfig]:
        """Return the sources by their names; a single one has none."""
        return dict(self.sources) if self.sources else {"": self}

    def check_sources(self) -> None:
        """Raise ConfigError for names and settings of several sources that cannot work."""
        for name, source in self.sources.items():
            setting = f"data.train.sources.{name}"
            if not re.fullmatch(r"[\w-]+", name):
                raise ConfigError(f"{setting} cannot be named so: letters, digits, - and _ make up a source's name.")
            check_fields(setting, source)
            source.prompts = checked_prompts(source.prompts, f"{setting}.prompts")
            if source.prompt is not None:
                source.prompt = as_template(source.prompt, f"{setting}.prompt")
            source.check(setting)
            if not source.names():
                raise ConfigError(f"{setting}.name_or_path is missing: give a file, a folder or a hub name.")
