"""Training and evaluation data: where rows come from, and how batches are formed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from angle.config.limits import LimitsConfig
from angle.config.values import FORMAT_NAMES, check_fields, declared, expand_home
from angle.errors import ConfigError


@dataclass
class DataFormatConfig:
    """The shape of the training rows."""

    name: str = declared("auto", choices=("auto", *FORMAT_NAMES))
    """A (text1, text2, label), B (text, positive, negative), C (text, positive) or auto (from the columns)."""

    def __post_init__(self) -> None:
        check_fields("data_format", self)


def label_name(label: object) -> str:
    """Return a label's name in `label_map`: a whole number has no decimal point, whatever type it is stored in."""
    return str(int(label)) if isinstance(label, float) and label.is_integer() else str(label)


@dataclass
class SourceConfig:
    """Where rows come from."""

    name_or_path: Any = None
    """A hub name, a .json/.jsonl/.csv/.tsv/.parquet file (also .gz), a save_to_disk folder, `sample` (built in), or
    a list of these; null: none."""
    subset: str | None = None
    """The data set's configuration on the hub."""
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

    def names(self) -> list[str]:
        """Return the sources as a list, empty if there are none."""
        if self.name_or_path is None:
            return []
        return [self.name_or_path] if isinstance(self.name_or_path, str) else list(self.name_or_path)


@dataclass
class DataConfig:
    """The data for training and evaluation."""

    train: SourceConfig = field(default_factory=lambda: SourceConfig(name_or_path="sample"))
    """Training rows."""
    valid: SourceConfig = field(default_factory=SourceConfig)
    """Rows of any format whose loss is reported during training."""
    valid_sts: SourceConfig = field(default_factory=SourceConfig)
    """Rows of format A whose Spearman correlation chooses the best model; null: `data.valid` if it is format A."""
    test: SourceConfig = field(default_factory=SourceConfig)
    """Rows of format A, evaluated once before and once after training."""
    valid_split: float = 0.0
    """Fraction of the training rows to hold out as data.valid. Rows that share a text stay on one side, and which rows
    they are does not depend on a seed."""
    negatives: str = declared("draw", choices=("draw", "all"))
    """What a list in the column negative means: draw (one of them, anew each epoch) or all (each is a candidate of
    every row). Of several columns (negative_1, negative_2, ...) all are used."""
    duplicates: str = declared("mask", choices=("mask", "drop", "keep"))
    """What to do with equal texts in a batch: mask (never negatives of each other), drop (the later row) or keep (as
    negatives). With mask and drop, a text's positives in any row of the batch are no negatives of it either."""
    shuffle: bool = True
    """Shuffle the training rows anew every epoch."""
    seed: int | None = declared(None, at_least=0)
    """Seed of the shuffling; null: train.seed."""
    streaming: bool = False
    """Stream the training rows instead of loading them all at once; needs train.max_steps."""
    stream_window: int = declared(10_000, at_least=1)
    """Streaming: number of rows held in memory, and shuffled among themselves, at a time."""
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    """What is read at most."""

    def __post_init__(self) -> None:
        check_fields("data", self)
        self.limits.check("data.limits")
        self._check_valid_split()
        for purpose in ("train", "valid", "valid_sts", "test"):
            value = getattr(self, purpose).name_or_path
            names = value if isinstance(value, list) else [value]
            if value is not None and not (names and all(isinstance(name, str) for name in names)):
                raise ConfigError(
                    f"data.{purpose}.name_or_path={value} cannot work: give a name or path, or a list of "
                    f"them such as data.{purpose}.name_or_path=[a.jsonl,b.jsonl]."
                )

    def _check_valid_split(self) -> None:
        if not self.valid_split:
            return
        setting = f"data.valid_split={self.valid_split:g}"
        if not 0 < self.valid_split < 1:
            raise ConfigError(f"{setting} cannot work: it is a fraction of the training rows, such as 0.05.")
        if self.streaming:
            raise ConfigError(
                f"{setting} cannot work with data.streaming=true, which never has all rows: give rows of their own, "
                f"data.valid.name_or_path=FILE."
            )
        given = [f"data.{purpose}" for purpose in ("valid", "valid_sts") if getattr(self, purpose).names()]
        if given:
            raise ConfigError(
                f"{setting} cannot work beside {given[0]}, which has validation rows: leave it out, or type "
                f"{given[0]}.name_or_path=null."
            )
