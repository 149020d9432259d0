"""Embedding of texts that stand in files: which texts, by which template, and what is written."""

from __future__ import annotations

from dataclasses import dataclass, field

from angle.config.limits import LimitsConfig
from angle.config.model import ModelConfig
from angle.config.pooling import PoolingConfig
from angle.config.source import SourceConfig
from angle.config.values import check_fields, declared, expand_home
from angle.errors import ConfigError


@dataclass
class EmbedConfig:
    """Everything that `python -m angle.embed` takes, by group or by itself."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The model; its prompt, pooling and maximum length are its own unless given here."""
    pooling: PoolingConfig = field(default_factory=PoolingConfig)
    rows: SourceConfig = field(default_factory=SourceConfig)
    """Rows with a text each: in the column text, or in the only column that holds texts."""
    role: str | None = None
    """Whose template the texts get: query, document, a column's, or another name that the model has a template for;
    null: that of texts without a role, which is model.prompt."""
    format: str = declared("npy", choices=("npy", "parquet"))
    """npy: embeddings.npy, a matrix with a row for each text; parquet: embeddings.parquet, a table with the number of
    each row, the cell of the column id if there is one, and the embedding."""
    dtype: str = declared("float32", choices=("float32", "float16"))
    """Type of the numbers that are written; the model computes in model.dtype."""
    normalize: bool = False
    """Scale embeddings to unit length; those of a model that normalises have it in any case."""
    batch_size: int = declared(64, at_least=1)
    """Texts per batch."""
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    """What is read of a file at most."""
    output_dir: str | None = None
    """Folder for the embeddings and embeddings.json, in which the same command goes on after a crash; null:
    embedded/<date>/<time>."""

    def __post_init__(self) -> None:
        self.output_dir = expand_home("output_dir", self.output_dir)
        check_fields("", self)
        self.limits.check("limits")
        self.rows.check("rows")
        if self.rows.label_map:
            raise ConfigError("rows.label_map has no effect on texts without labels: leave it out.")
        if self.format == "npy" and self.rows.columns.get("id") is not None:
            raise ConfigError(
                f"rows.columns.id={self.rows.columns['id']} has no effect with format=npy, which holds nothing but "
                f"embeddings: type format=parquet, or leave it out."
            )
