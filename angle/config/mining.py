"""Mining of hard negatives: which passages near a query are taken, and who judges how near they are."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from angle.config.limits import LimitsConfig
from angle.config.model import ModelConfig
from angle.config.pooling import PoolingConfig
from angle.config.source import SourceConfig
from angle.config.values import check_fields, declared, expand_home
from angle.errors import ConfigError


@dataclass
class JudgeConfig:
    """A second model that scores the passages which the first one has found, and ranks them anew."""

    name_or_path: str | None = None
    """A cross-encoder with one output, or an encoder; null: the cosines of the model itself count."""
    kind: str = declared("cross_encoder", choices=("cross_encoder", "encoder"))
    """cross_encoder: its score of a query and a passage together, between 0 and 1; encoder: the cosine of its
    embeddings."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    max_length: int = declared(512, at_least=8)
    """Cross-encoder: maximum tokens of query and passage together."""

    def __post_init__(self) -> None:
        self.name_or_path = expand_home("judge.name_or_path", self.name_or_path)
        check_fields("judge", self)
        for item in fields(self)[1:]:
            value = getattr(self, item.name)
            if self.name_or_path is None and value != item.default:
                raise ConfigError(
                    f"judge.{item.name}={value} has no effect without a judge: add judge.name_or_path=MODEL, or leave "
                    f"it out."
                )


@dataclass
class MineConfig:
    """Everything that `python -m angle.mine` takes, by group or by itself."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The model that finds the passages; its prompt, pooling and maximum length are its own unless given here."""
    pooling: PoolingConfig = field(default_factory=PoolingConfig)
    rows: SourceConfig = field(default_factory=SourceConfig)
    """Queries with known positives: rows of format B or C."""
    corpus: SourceConfig = field(default_factory=SourceConfig)
    """Passages: rows with a column text, and perhaps a title; null: the positives and negatives of the rows. The rows'
    positives are always among the passages."""
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    num_negatives: int = declared(3, at_least=1)
    """Negatives of each row."""
    range_min: int = declared(0, at_least=0)
    """How many of the nearest passages that could be negatives are skipped: the nearest may be unknown positives."""
    range_max: int | None = declared(None, at_least=1)
    """How many of the nearest are looked at; null: range_min and ten times num_negatives."""
    max_score: float | None = None
    """Leave out passages with a higher score: those may be positives."""
    min_score: float | None = None
    """Leave out passages with a lower score: those are too easy."""
    absolute_margin: float | None = declared(None, at_least=0)
    """Leave out passages whose score is not lower, by this much, than that of the query's positive: of several
    positives, the one with the lowest score."""
    relative_margin: float | None = declared(None, at_least=0)
    """The same, as a share of the positive's score: 0.05 leaves out what is above 95 % of it."""
    sampling: str = declared("top", choices=("top", "random"))
    """top: the nearest of the passages that are left; random: any of them."""
    seed: int = declared(42, at_least=0)
    """Seed of sampling=random."""
    incomplete: str = declared("drop", choices=("drop", "keep"))
    """Rows with fewer than num_negatives: drop leaves them out, keep writes those with at least one."""
    layout: str = declared("columns", choices=("columns", "list"))
    """columns: the negatives of a row are negative_1, negative_2, ..., all of which training uses; list: they are a
    list in the column negative, of which it draws one each epoch unless data.negatives=all. A single one is a text in
    the column negative."""
    batch_size: int = declared(64, at_least=1)
    """Texts per batch."""
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    """What is read of a file at most."""
    output_dir: str | None = None
    """Folder for negatives.jsonl, mining.json and the page; null: mined/<date>/<time>."""

    def __post_init__(self) -> None:
        self.output_dir = expand_home("output_dir", self.output_dir)
        check_fields("", self)
        self.limits.check("limits")
        for group, source in (("rows", self.rows), ("corpus", self.corpus)):
            source.check(group)
            if source.label_map:
                raise ConfigError(f"{group}.label_map has no effect on texts without labels: leave it out.")
        if self.range_max is not None and self.range_max - self.range_min < self.num_negatives:
            raise ConfigError(
                f"range_max={self.range_max} cannot work: beyond range_min={self.range_min} it leaves "
                f"{max(0, self.range_max - self.range_min)} passages for num_negatives={self.num_negatives}; give "
                f"range_max={self.range_min + 10 * self.num_negatives}, or fewer negatives."
            )
        if self.max_score is not None and self.min_score is not None and self.max_score < self.min_score:
            raise ConfigError(
                f"max_score={self.max_score:g} cannot work: it is below min_score={self.min_score:g}, so nothing would "
                f"be left."
            )

    @property
    def last_rank(self) -> int:
        """How many of the nearest passages that could be negatives are looked at."""
        return self.range_max or self.range_min + 10 * self.num_negatives
