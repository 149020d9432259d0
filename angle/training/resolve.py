"""Resolving the settings: what was left to the model or the data gets a value, so that they state what is run."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from angle.config import (
    SAMPLE,
    SELF_TEACHER,
    BillmConfig,
    DataConfig,
    DataFormatConfig,
    LossConfig,
    ModelConfig,
    NamedSourceConfig,
    PoolingConfig,
    SourceConfig,
    TrainConfig,
)
from angle.config.loss import OF_ALL_SOURCES
from angle.data import sample
from angle.errors import ConfigError
from angle.modeling.encoder import Encoder
from angle.modeling.locations import TINY

#: train.average_window and train.dropout, if they are left out.
AVERAGE_WINDOW, DROPOUT = 0.1, "0"
Source = TypeVar("Source", bound=SourceConfig)


def resolve_config(
    config: TrainConfig, encoder: Encoder, data_format: DataFormatConfig, source_formats: Mapping[str, DataFormatConfig]
) -> TrainConfig:
    """Return the settings with everything decided, and with paths that hold in any working directory.

    Args:
        config: the settings as requested.
        encoder: the encoder, which knows its own tokenizer, pooling and attention.
        data_format: what the training rows are; that of `config` if several sources have batches of their own.
        source_formats: what the rows of each of several sources are, by their names.

    """
    several = config.data.has_losses_by_source
    loss = replace(config.loss, guide=config.loss.guide and _absolute_if_local(config.loss.guide))
    teacher_name = config.teacher.name_or_path
    has_adapter = config.lora.enabled or config.model.adapter is not None
    train = config.train
    learning_rate = train.learning_rate or _default_lr(config.model.name_or_path, has_adapter=has_adapter)
    average_window = (
        AVERAGE_WINDOW if train.average_window is None and train.average != "none" else train.average_window
    )
    return replace(
        config,
        data=_resolve_sources(_with_absolute_paths(config.data), config.loss, source_formats),
        model=_resolve_model(config.model, encoder),
        pooling=PoolingConfig(encoder.pooling),
        teacher=replace(config.teacher, name_or_path=teacher_name and _absolute_if_local(teacher_name)),
        billm=_resolve_billm(encoder.embedding_config.bidirectional_from, requested=config.billm.enabled),
        loss=loss if several else _resolve_loss(loss, data_format, _is_sample(config.data.train)),
        data_format=data_format,
        train=replace(
            train,
            learning_rate=learning_rate,
            average_window=average_window,
            dropout=train.dropout or DROPOUT,
        ),
    )


def decided_value(config: TrainConfig, key: str, left_out: Collection[str]) -> object:
    """Return the value that a setting gets in a run like this one if it is left out; None if that cannot be told.

    Args:
        config: a run's settings, resolved.
        key: a setting whose default is null: that of the model or the data.
        left_out: all settings that are left out, that one and others.

    """
    group, _, name = key.partition(".")
    if group == "loss":
        if config.data_format.name == "auto":  # each source has its own
            return None
        defaults = {f"loss.{field.name}": field.default for field in fields(LossConfig)}
        changes = {each.partition(".")[2]: defaults[each] for each in left_out if each in defaults}
        try:
            loss = replace(config.loss, **dict[str, Any](changes))
            resolved = _resolve_loss(loss, config.data_format, _is_sample(config.data.train))
        except ConfigError:  # with the rest of the run's settings, nothing would be left to learn
            return None
        value: object = getattr(resolved, name)
        return value
    if key == "train.dropout":
        return DROPOUT
    if key == "train.average_window":
        return None if config.train.average == "none" else AVERAGE_WINDOW
    if key == "train.learning_rate":
        has_adapter = config.lora.enabled or config.model.adapter is not None
        return _default_lr(config.model.name_or_path, has_adapter=has_adapter)
    return None


def _default_lr(model: str, *, has_adapter: bool) -> float:
    if model == TINY:
        return 2e-3
    return 2e-4 if has_adapter else 5e-5


def _resolve_model(model: ModelConfig, encoder: Encoder) -> ModelConfig:
    embedding_config = encoder.embedding_config
    return replace(
        model,
        name_or_path=_absolute_if_local(model.name_or_path),
        adapter=model.adapter and _absolute_if_local(model.adapter),
        max_length=embedding_config.max_length,
        prompt=embedding_config.prompt,
        is_llm=embedding_config.is_llm,
        padding_side=embedding_config.padding_side,
        end_token=encoder.tokenizer.ends_with_end_token,
        kernels=None if encoder.kernels is None else list(encoder.kernels.selected),
    )


def _is_sample(source: SourceConfig) -> bool:
    return source.names() == [SAMPLE]


def _resolve_loss(loss: LossConfig, data_format: DataFormatConfig, on_sample: bool) -> LossConfig:
    loss = loss.for_format(data_format.name, graded=bool(data_format.graded))
    if loss.positive_above is not None:
        return loss
    return replace(loss, positive_above=sample.POSITIVE_ABOVE if on_sample and data_format.name == "A" else 0.0)


def _resolve_sources(data: DataConfig, loss: LossConfig, formats: Mapping[str, DataFormatConfig]) -> DataConfig:
    """Return the data's settings with the format of each of several sources, and the loss of batches of its own."""
    sources = {name: replace(source, format=formats[name].name) for name, source in data.train.sources.items()}
    if data.has_losses_by_source:
        sources = {
            name: replace(source, loss=_source_loss(loss, name, source, formats[name]))
            for name, source in sources.items()
        }
    return replace(data, train=replace(data.train, sources=sources))


def _source_loss(
    loss: LossConfig, name: str, source: NamedSourceConfig, data_format: DataFormatConfig
) -> dict[str, float | None]:
    """Return the loss of the batches of one of several sources, all of its settings by their names."""
    changed = loss.with_changes(source.loss, f"data.train.sources.{name}.loss")
    resolved = asdict(_resolve_loss(changed, data_format, _is_sample(source)))
    return {name: value for name, value in resolved.items() if name not in OF_ALL_SOURCES}


def _resolve_billm(start: int | None, *, requested: bool) -> BillmConfig:
    """Return settings that hold whatever the model's own configuration says, if any were requested."""
    if start is None:
        return BillmConfig(enabled=True, start_index=-1) if requested else BillmConfig()
    return BillmConfig(enabled=True, start_index=start)


def _with_absolute_paths(data: DataConfig) -> DataConfig:
    """Return the data's settings with files that are found from any working directory."""

    def absolute(source: Source) -> Source:
        names = [_absolute_if_local(name) for name in SourceConfig.names(source)]
        return replace(source, name_or_path=names if isinstance(source.name_or_path, list) else next(iter(names), None))

    valid, valid_sts, test = map(absolute, (data.valid, data.valid_sts, data.test))
    named = {name: absolute(source) for name, source in data.train.sources.items()}
    train = replace(absolute(data.train), sources=named)
    retrieval = data.valid_retrieval.name_or_path
    valid_retrieval = replace(data.valid_retrieval, name_or_path=retrieval and _absolute_if_local(retrieval))
    return replace(data, train=train, valid=valid, valid_sts=valid_sts, valid_retrieval=valid_retrieval, test=test)


def _absolute_if_local(name: str) -> str:
    path = Path(name).expanduser()
    return str(path.resolve()) if name not in (SAMPLE, TINY, SELF_TEACHER) and path.exists() else name
