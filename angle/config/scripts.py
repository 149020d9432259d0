"""The schema of each script: its groups, and the checks that span several of them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from angle.config.billm import BillmConfig
from angle.config.data import DataConfig, DataFormatConfig
from angle.config.ese import EseConfig
from angle.config.hparams import HparamsConfig
from angle.config.hub import HubConfig
from angle.config.limits import LimitsConfig
from angle.config.lora import LoraConfig
from angle.config.loss import LossConfig
from angle.config.model import ModelConfig
from angle.config.pooling import PoolingConfig
from angle.config.source import NamedSourceConfig, SourceConfig
from angle.config.teacher import TeacherConfig
from angle.config.tracking import TrackingConfig
from angle.config.training import TrainingConfig
from angle.config.values import RETRIEVAL_METRIC, SELF_TEACHER, check_at_least, check_fields, declared, expand_home
from angle.errors import ConfigError


class SourceLoss(NamedTuple):
    """The loss of batches of one source, or of all."""

    source: str
    """The name of one of several sources; "" for all."""
    config: LossConfig
    format: str
    """The format of the rows."""

    @property
    def summary(self) -> str:
        """The sum that is minimised, behind the name of the source."""
        return f"{f'{self.source}: ' if self.source else ''}{self.config.summary(self.format)}"


@dataclass
class TrainConfig:
    """Everything that `train.py` takes, by group."""

    model: ModelConfig = field(default_factory=ModelConfig)
    pooling: PoolingConfig = field(default_factory=PoolingConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    billm: BillmConfig = field(default_factory=BillmConfig)
    ese: EseConfig = field(default_factory=EseConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    data_format: DataFormatConfig = field(default_factory=DataFormatConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainingConfig = field(default_factory=TrainingConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    hub: HubConfig = field(default_factory=HubConfig)
    hparams: HparamsConfig = field(default_factory=HparamsConfig)

    def __post_init__(self) -> None:
        if not self.data.train.names():
            raise ConfigError(
                "data.train.name_or_path is missing: give a file, a folder or a hub name, for example "
                "data.train.name_or_path=pairs.jsonl."
            )
        if self.data.streaming and self.train.max_steps is None:
            raise ConfigError(
                "data.streaming=true needs train.max_steps, because a stream has no known length: add for "
                "example train.max_steps=1000."
            )
        if self.data.streaming and self.loss.guide is not None:
            raise ConfigError(
                "loss.guide cannot work with data.streaming=true: a stream's texts are not known before training: "
                "leave one out."
            )
        if self.model.load_kbit is not None and not self.lora.enabled and self.model.adapter is None:
            raise ConfigError(
                f"model.load_kbit={self.model.load_kbit} freezes the weights, so there is nothing to train: "
                f"add lora=r16."
            )
        if self.teacher.enabled and self._is_own_teacher():
            self.teacher = dataclasses.replace(self.teacher, name_or_path=SELF_TEACHER, revision=None)
        if self.teacher.cache and self.data.streaming:
            raise ConfigError(
                "teacher.cache=true cannot work with data.streaming=true: a stream's texts are not known before "
                "training: leave one out."
            )
        if (
            self.train.best_metric is None
            and self.data.valid_retrieval.name_or_path
            and not self.data.valid_sts.names()
        ):
            self.train = dataclasses.replace(self.train, best_metric=RETRIEVAL_METRIC)
        if self.data_format.name != "auto" and not self.data.has_losses_by_source:
            self.loss.for_format(self.data_format.name, graded=bool(self.data_format.graded))  # checks it
        losses = [self.loss]
        if self.data.has_losses_by_source:
            losses = [self._source_loss(name, source) for name, source in self.data.train.sources.items()]
        if self.loss.guide is not None and not any(loss.has_candidates for loss in losses):
            raise ConfigError(
                f"loss.guide={self.loss.guide} has nothing to do, as no in-batch loss has a weight: leave it out, or "
                f"set loss.ibn_w above 0."
            )
        for purpose, split in (("valid", "validation"), ("valid_sts", "validation"), ("test", "test")):
            self._check_held_out(purpose, split)

    def _source_loss(self, name: str, source: NamedSourceConfig) -> LossConfig:
        """Return the loss of one of several sources, after checking it."""
        setting, required = f"data.train.sources.{name}", self.data_format.name
        if "auto" not in (required, source.format) and source.format != required:
            raise ConfigError(
                f"{setting}.format={source.format} cannot work with loss=format_{required.lower()}, which sets weights "
                f"for format {required}: type loss=auto."
            )
        return self.loss.with_changes(source.loss, f"{setting}.loss")

    @property
    def losses(self) -> list[SourceLoss]:
        """The loss of each source whose batches are its own, else that of all; of settings that are resolved."""
        if not self.data.has_losses_by_source:
            return [SourceLoss("", self.loss, self.data_format.name)]
        return [
            SourceLoss(name, self.loss.with_changes(source.loss, name), source.format)
            for name, source in self.data.train.sources.items()
        ]

    def loss_of(self, data_format: str) -> LossConfig:
        """Return the loss of rows of a format that are not trained on: that of all sources of the format, if it is one.

        The settings are resolved.
        """
        own = [loss.config for loss in self.losses if loss.format == data_format]
        return own[0] if own and all(other == own[0] for other in own) else self.loss

    def _check_held_out(self, purpose: str, default_split: str) -> None:
        """Raise ConfigError if the held-out rows of `purpose` are also the training rows."""
        held_out = getattr(self.data, purpose)
        for train in self.data.train.by_name().values():
            split = held_out.split or default_split
            same_split = split == (train.split or "train") and held_out.subset == train.subset
            for name in SourceConfig.names(train):
                is_file = Path(name).is_file()  # a file has no splits
                if name in held_out.names() and (is_file or same_split):
                    hint = "" if is_file else f", for example data.{purpose}.split={default_split}"
                    raise ConfigError(
                        f"data.{purpose} is the training data itself, so it would measure nothing: give other rows "
                        f"than those of {name}{hint}."
                    )

    def _is_own_teacher(self) -> bool:
        """Return whether the named teacher is the model that training starts from."""
        model, teacher = self.model, self.teacher
        if model.adapter is not None or model.layers is not None or model.dimensions is not None:
            return False
        paths = {Path(name).resolve() for name in (model.name_or_path, str(teacher.name_or_path))}
        return len(paths) == 1 and teacher.revision in (None, model.revision)


@dataclass
class EvaluateConfig:
    """Everything that `evaluate.py` takes, by group or by itself."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The model; its prompt, pooling and maximum length are those it was trained with unless given here."""
    pooling: PoolingConfig = field(default_factory=PoolingConfig)
    tasks: list[str] | None = None
    """stsb, sickr, sts12 ... sts16, sts (all seven), a set of NanoBEIR such as NanoMSMARCO, nano_beir (all thirteen),
    BeIR/NAME, files in format A, or folders with corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv; null: the run's own
    test set."""
    suite: str | None = declared(None, choices=("mteb",))
    """mteb: `tasks` are names of tasks and benchmarks of MTEB, which the package mteb measures, and whose results it
    writes; null: they are this project's."""
    split: str | None = None
    """Of a task with queries, whose judgements; null: test, and for NanoBEIR the only one it has."""
    columns: dict[str, str | None] = field(default_factory=dict)
    """A file's columns to rename, as {new: old}; {old: null} leaves one out."""
    label_map: dict[Any, float | None] = field(default_factory=dict)
    """Numbers for a file's labels; null drops the row."""
    positive_above: float | None = None
    """For the accuracy, labels above this are positive; null: 0.5, or for a run's own test set as in its training,
    or the middle of a scale on which 0.5 would make all pairs one or the other."""
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    """What is read of a file at most."""
    batch_size: int = declared(64, at_least=1)
    """Texts per batch."""
    ese_grid: bool = False
    """Score every combination of depth and width of the embeddings, all in one pass."""
    ese_depths: list[int] | None = None
    """Depths of the grid, in layers; null: all, or every second, third, ... and the last if there are more than 12."""
    ese_widths: list[int] | None = None
    """Widths of the grid, in dimensions; null: 8, 16, 32, ... and all."""
    output_dir: str | None = None
    """Folder for results.json and the scores of pairs and queries; null: evaluations/<date>/<time>."""

    def __post_init__(self) -> None:
        self.output_dir = expand_home("output_dir", self.output_dir)
        self.tasks = expand_home("tasks", self.tasks)
        check_fields("", self)
        self.limits.check("limits")
        for name in ("ese_depths", "ese_widths"):
            numbers = getattr(self, name)
            if numbers is None:
                continue
            if not self.ese_grid:
                raise ConfigError(f"{name}={numbers} has no effect without a grid: add ese_grid=true, or leave it out.")
            for number in numbers or [0]:
                check_at_least(name, number, 1)
        if self.ese_grid and self.positive_above is not None:
            raise ConfigError(
                f"positive_above={self.positive_above:g} has no effect with ese_grid=true, which has no accuracy: "
                f"leave one out."
            )
        if self.suite is not None:
            self._check_suite()
        if self.tasks is not None and not self.tasks:
            raise ConfigError("tasks=[] measures nothing: give for example tasks=[stsb,sickr] or tasks=[pairs.jsonl].")

    def _check_suite(self) -> None:
        """Raise ConfigError for settings that mean nothing to a suite, whose tasks know their own data."""
        if self.tasks is None:
            raise ConfigError(
                f"suite={self.suite} needs tasks: give for example tasks=[STS12,NFCorpus], or a benchmark such as "
                f"'tasks=[\"MTEB(eng, v2)\"]'."
            )
        for name in ("columns", "label_map", "positive_above", "split", "ese_grid"):
            if getattr(self, name) not in (None, False, {}):
                raise ConfigError(
                    f"{name} has no effect with suite={self.suite}, whose tasks know their own data: leave one out."
                )


@dataclass
class ConvertConfig:
    """Everything that `convert.py` takes, by group or by itself."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The model to convert, usually model.name_or_path=RUN."""
    pooling: PoolingConfig = field(default_factory=PoolingConfig)
    merge: bool = True
    """Merge an adapter into the weights; false: keep it separate, so the folder needs the base model at its path."""
    normalize: bool | None = None
    """true: embeddings of unit length, by a Normalize module; false: of their own length; null: as those of the model
    that it was trained from."""
    onnx: str | None = declared(None, choices=("float32", "int8"))
    """float32: also write the model as an ONNX file, onnx/model.onnx; int8: that, and one with weights of 8 bits; null:
    none."""
    output_dir: str | None = None
    """The new folder; null: sentence_transformers inside the run folder."""

    def __post_init__(self) -> None:
        check_fields("", self)
        self.output_dir = expand_home("output_dir", self.output_dir)
        if self.onnx is not None and not self.merge:
            raise ConfigError(
                f"onnx={self.onnx} cannot work with merge=false: an ONNX file holds the model with its adapter merged; "
                f"type merge=true, or leave onnx out."
            )
