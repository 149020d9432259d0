"""Training and evaluation data: where rows come from, and how batches are formed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from angle.config.limits import LimitsConfig
from angle.config.source import SAMPLE, SourceConfig, TrainSourceConfig
from angle.config.values import FORMAT_NAMES, check_fields, declared, expand_home
from angle.errors import ConfigError


@dataclass
class DataFormatConfig:
    """The shape of the training rows."""

    name: str = declared("auto", choices=("auto", *FORMAT_NAMES))
    """A (text1, text2, label), B (text, positive, negative), C (text, positive) or auto (from the columns)."""
    graded: bool | None = None
    """Whether labels of format A say how much rather than whether: null weights of `loss` then only rank. null: if
    there are more than two different ones, as far as rows are read before training (sample data: false)."""

    def __post_init__(self) -> None:
        check_fields("data_format", self)
        if self.graded and self.name in ("B", "C"):
            raise ConfigError(f"data_format.graded=true cannot work with format {self.name}, which has no labels.")


@dataclass
class RetrievalConfig:
    """Queries, passages and judgements of which passages answer which query, in the layout of BEIR."""

    name_or_path: str | None = None
    """A folder with corpus.jsonl (_id, title, text), queries.jsonl (_id, text) and qrels/SPLIT.tsv (query-id,
    corpus-id, score), all also .gz or .parquet; a hub name with the configurations corpus, queries and qrels; a set of
    NanoBEIR, such as NanoMSMARCO; null: none."""
    qrels: str | None = None
    """The data set on the hub whose default configuration has the judgements, such as mteb/scifact for itself; null:
    the configuration qrels of name_or_path, or BeIR/NAME-qrels for BeIR/NAME."""
    split: str | None = None
    """Whose judgements; null: dev."""
    revision: str | None = None
    """Branch, tag or commit of name_or_path on the hub."""

    def __post_init__(self) -> None:
        self.name_or_path = expand_home("name_or_path", self.name_or_path)


#: At which sources are drawn by the square roots of their sizes.
DEFAULT_TEMPERATURE = 2.0


@dataclass
class DataConfig:
    """The data for training and evaluation."""

    train: TrainSourceConfig = field(default_factory=lambda: TrainSourceConfig(name_or_path=SAMPLE))
    """Training rows."""
    mix: str = declared("by_source", choices=("by_source", "together"))
    """Several sources: whether each batch has rows of one of them, or of all (whose formats and losses must agree)."""
    sampling: str | None = declared(None, choices=("proportional", "weights", "temperature", "round_robin"))
    """Several sources: how often each is drawn. proportional (all rows once an epoch), weights (their own), temperature
    (by rows ** (1 / data.sampling_temperature)) or round_robin (in turns); null: weights if they have some, else
    proportional."""
    sampling_temperature: float = declared(DEFAULT_TEMPERATURE, above=0)
    """For data.sampling=temperature: 1 draws sources by their size, higher numbers draw small ones more often."""
    valid: SourceConfig = field(default_factory=SourceConfig)
    """Rows of any format whose loss is reported during training."""
    valid_sts: SourceConfig = field(default_factory=SourceConfig)
    """Rows of format A whose Spearman correlation chooses the best model; null: `data.valid` if it is format A."""
    valid_retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    """Queries and passages whose nDCG@10 chooses the best model, unless there is `data.valid_sts` too."""
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
        self._check_sources()
        self._check_valid_split()
        for purpose in ("train", "valid", "valid_sts", "test"):
            getattr(self, purpose).check(f"data.{purpose}")

    @property
    def has_losses_by_source(self) -> bool:
        """Whether each batch is of one of several named sources, and has its loss."""
        return bool(self.train.sources) and self.mix == "by_source"

    def _check_sources(self) -> None:
        """Check what several sources of training rows need; the default source gives way to them."""
        sources = self.train.sources
        if not sources:
            for name, value, default in (("mix", self.mix, "by_source"), ("sampling", self.sampling, None)):
                if value != default:
                    raise ConfigError(f"data.{name}={value} needs several sources: name them in data.train.sources.")
        if self.sampling != "temperature" and self.sampling_temperature != DEFAULT_TEMPERATURE:
            raise ConfigError(
                f"data.sampling_temperature={self.sampling_temperature:g} has no effect without "
                f"data.sampling=temperature: add it, or leave it out."
            )
        if not sources:
            return
        if self.train.name_or_path not in (None, SAMPLE):
            raise ConfigError(
                f"data.train.name_or_path={self.train.name_or_path} cannot work beside data.train.sources: add it to "
                f"these under a name of its own, or type data.train.name_or_path=null."
            )
        self.train.name_or_path = None
        for item in dataclasses.fields(SourceConfig):
            if value := getattr(self.train, item.name):
                raise ConfigError(
                    f"data.train.{item.name}={value} has no effect beside data.train.sources: write it for each of "
                    f"them, as data.train.sources.{next(iter(sources))}.{item.name}."
                )
        self.train.check_sources()
        if self.streaming:
            raise ConfigError("data.streaming=true cannot work with data.train.sources: leave one of them out.")
        weights = {name: source.weight for name, source in sources.items() if source.weight is not None}
        if weights and self.sampling not in (None, "weights"):
            raise ConfigError(
                f"data.train.sources.{next(iter(weights))}.weight has no effect with data.sampling={self.sampling}: "
                f"leave one of them out."
            )
        if self.sampling == "weights" or weights:
            missing = [name for name in sources if name not in weights]
            if missing:
                raise ConfigError(
                    f"data.train.sources.{missing[0]}.weight is missing: give every source a weight, or none of them."
                )
            if not any(weights.values()):
                raise ConfigError("The weights of data.train.sources sum to 0: give one of them a weight above 0.")
        if self.mix == "together":
            for name, source in sources.items():
                for setting in ("batch_size", "loss"):
                    if getattr(source, setting):
                        raise ConfigError(
                            f"data.train.sources.{name}.{setting} cannot work with data.mix=together, whose batches "
                            f"have rows of all sources: type data.mix=by_source, or leave it out."
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
        if self.train.sources:
            raise ConfigError(
                f"{setting} cannot work with several data.train.sources: give rows of their own, "
                f"data.valid.name_or_path=FILE."
            )
        given = [f"data.{purpose}" for purpose in ("valid", "valid_sts") if getattr(self, purpose).names()]
        if given:
            raise ConfigError(
                f"{setting} cannot work beside {given[0]}, which has validation rows: leave it out, or type "
                f"{given[0]}.name_or_path=null."
            )
