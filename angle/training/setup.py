"""Setup before the first step: the model, the data, the objective and the optimiser, from settings that are decided."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from angle.config import OWN_DROPOUT, SAMPLE, DataConfig, DataFormatConfig, TrainConfig, TrainingConfig
from angle.data import sample
from angle.data.plan import BatchSpec
from angle.data.training_data import InMemoryTrainingData, TrainingData
from angle.distributed.process_group import all_reduce_min
from angle.errors import ConfigError
from angle.evaluation.evaluator import EvaluationRows, RunContext
from angle.evaluation.run_evaluators import DEFAULT_METRIC, RunEvaluators, metric_named
from angle.modeling.bidirectional import check_bidirectional_layers
from angle.modeling.compiling import compile_layers
from angle.modeling.dropout import set_dropout
from angle.modeling.encoder import Encoder
from angle.modeling.layers import base_model, check_depths
from angle.modeling.token_embeddings import freeze_unused_tokens
from angle.modeling.tokenizer import TextTokenizer
from angle.modeling.trainable import TrainableEncoder
from angle.objective.combined import CombinedLoss
from angle.objective.espresso import EspressoLoss
from angle.objective.objective import Objective
from angle.structures import DataFormat
from angle.terminal import announce
from angle.training.checkpoint import seed_everything
from angle.training.data import RunData, check_prompts_used, check_text_lengths, load_data, with_sample_splits
from angle.training.distributed import query_shards
from angle.training.gradient_cache import GradientCache
from angle.training.guide import load_guide
from angle.training.kernels import run_kernels_to_skip
from angle.training.memory import find_token_budget
from angle.training.resolve import resolve_config
from angle.training.teacher import Teacher, load_teacher

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator


@dataclass(frozen=True)
class RunComponents:
    """What a run works with, before it has a folder."""

    config: TrainConfig
    """The settings, with everything decided."""
    trainable: TrainableEncoder
    teacher: Teacher | None
    guide_fingerprints: dict[str, str] | None
    """Hashes of the weights of a guide, which is no longer needed."""
    data: RunData
    objective: Objective
    evaluators: RunEvaluators

    @property
    def encoder(self) -> Encoder:
        """The encoder that is trained."""
        return self.trainable.encoder

    @property
    def fingerprints(self) -> dict[str, dict[str, str]]:
        """Hashes of the weights that the run starts from and, with a teacher or a guide, learns from."""
        models = {"model": self.encoder, "teacher": self.teacher}
        guide = {} if self.guide_fingerprints is None else {"guide": self.guide_fingerprints}
        return {name: model.fingerprints for name, model in models.items() if model is not None} | guide

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the run."""
        train_config = self.config.train
        return train_config.max_steps or train_config.epochs * (self.data.train.steps_per_epoch or 0)


def build(config: TrainConfig, accelerator: Accelerator) -> RunComponents:
    """Load the model and the data, check that they are compatible, and decide what was left open.

    Raises:
        ConfigError, DataError: anything wrong with the settings or the data.

    """
    train_config = config.train
    seed_everything(train_config.seed, rank=0)
    kernel_selector = partial(run_kernels_to_skip, train_config.packing)
    announce(f"loading {config.model.name_or_path}")
    encoder = Encoder.load(config.model, config.pooling, config.lora, config.billm, kernel_selector=kernel_selector)
    encoder.to(accelerator.device)
    with accelerator.autocast():
        encoder.verify_packing(training=True)
    _check_trainable(encoder)

    announce(f"reading {', '.join(config.data.train.names())}")
    config = replace(config, data=with_sample_splits(config.data))
    batch_spec = _batch_spec(train_config, config.data, accelerator)
    data, guide_fingerprints = _read_data(config, encoder.tokenizer, batch_spec, accelerator)
    check_text_lengths(data, encoder.pooling)
    sources = data.train.sources if isinstance(data.train, InMemoryTrainingData) else ()
    check_prompts_used(config.model.prompts, [source.corpus.format for source in sources] or data.train.formats)
    source_formats = {source.name: _format_of(config, data, source.corpus.format, source.name) for source in sources}
    several = config.data.has_losses_by_source
    data_format = config.data_format if several else _format_of(config, data, data.train.formats[0])
    config = resolve_config(config, encoder, data_format, source_formats)
    with accelerator.autocast():
        config = _set_dropout(config, encoder, is_requested=train_config.dropout is not None)
    if config.ese.enabled:
        check_depths(encoder.backbone)
    if isinstance(data.train, InMemoryTrainingData) and not train_config.weight_decay:
        freeze_unused_tokens(encoder.backbone, data.train.tokens.ids)

    duplicates, width = config.data.duplicates, encoder.dimensions
    losses = [
        CombinedLoss(loss.config, data_format, width, duplicates, query_shards(accelerator))
        for loss, data_format in zip(config.losses, data.train.formats, strict=True)
    ]
    objective = Objective(losses, config.teacher)
    if config.ese.enabled:
        layers = encoder.layer_selector.num_layers
        objective = Objective([EspressoLoss(loss, config.ese, layers, width) for loss in losses], config.teacher)
    evaluators = evaluators_of(config, data.evaluated, batch_spec.global_batch_size, width, accelerator.device)
    if train_config.patience is not None and evaluators.best_metric is None:
        raise ConfigError(
            f"train.patience={train_config.patience} has nothing to watch: give pairs with labels as "
            f"data.valid_sts.name_or_path=FILE, queries with judgements as "
            f"data.valid_retrieval.name_or_path=FOLDER, or others as data.valid.name_or_path=FILE or "
            f"data.valid_split=0.05, and train.best_metric=loss, triplet_accuracy (format B) or in_batch_accuracy "
            f"(B, C)."
        )

    teacher = None
    if config.teacher.enabled:
        teacher = load_teacher(config.teacher, encoder, config.model, config.billm, new_adapter=config.lora.enabled)
        if config.teacher.cache:
            assert isinstance(data.train, InMemoryTrainingData)
            with accelerator.main_process_first():  # the others find the embeddings in the cache
                teacher.cache_embeddings(data.train.tokens)

    trainable = TrainableEncoder(
        encoder,
        objective.depths,
        distillation_level=None if teacher is None else teacher.distillation_level,
        projection_dim=teacher.embedding_dim if teacher is not None and config.teacher.projection else None,
    )
    if train_config.compile:
        with accelerator.autocast():
            compile_layers(encoder)
    if train_config.token_budget == "auto":
        gradient_cache = GradientCache(trainable, objective, teacher, accelerator)
        budget = _largest_token_budget(gradient_cache, data.train, train_config)
        config = replace(config, train=replace(config.train, token_budget=str(budget)))
    return RunComponents(config, trainable, teacher, guide_fingerprints, data, objective, evaluators)


def evaluators_of(
    config: TrainConfig,
    evaluated: Mapping[str, EvaluationRows | None],
    global_batch_size: int,
    dimensions: int,
    device: torch.device,
) -> RunEvaluators:
    """Return what measures a run's model.

    Args:
        config: the run's settings, with everything decided.
        evaluated: the rows, by purpose.
        global_batch_size: rows of all processes in one evaluation of the objective.
        dimensions: width of an embedding.
        device: where losses are computed.

    Raises:
        ConfigError: nothing measures train.best_metric.

    """
    valid = evaluated["valid"]
    loss = config.loss if valid is None else config.loss_of(valid.format.name)
    context = RunContext(global_batch_size, config.data.duplicates, loss, dimensions, device)
    return RunEvaluators.build(evaluated, config.train.best_metric, context)


def _read_data(
    config: TrainConfig, tokenizer: TextTokenizer, batch_spec: BatchSpec, accelerator: Accelerator
) -> tuple[RunData, dict[str, str] | None]:
    """Return the data, and the hashes of a guide's weights, whose memory is free once it has embedded the texts."""
    guide = None
    if config.loss.guide is not None:
        announce(f"loading {config.loss.guide}")
        guide = load_guide(config.loss.guide, config.model, accelerator.device)
    with accelerator.main_process_first():  # the others find tokens and embeddings in the cache
        data = load_data(
            config.data,
            config.data_format.name,
            tokenizer,
            batch_spec,
            needs_correlation=metric_named(config.train.best_metric) == DEFAULT_METRIC,
            guide=guide,
        )
    return data, None if guide is None else guide.fingerprints


def _set_dropout(config: TrainConfig, encoder: Encoder, *, is_requested: bool) -> TrainConfig:
    """Set the model's dropout; return the settings, which say whether it is the model's own after all.

    Raises:
        ConfigError: the model drops in places of its own, and `is_requested`.

    """
    probability = config.train.dropout_probability
    if probability is None or set_dropout(encoder.backbone, probability):
        return config
    if is_requested:
        raise ConfigError(
            f"train.dropout={config.train.dropout} cannot work with {type(base_model(encoder.backbone)).__name__}, "
            f"which drops in places of its own: leave it out."
        )
    return replace(config, train=replace(config.train, dropout=OWN_DROPOUT))


def _check_trainable(encoder: Encoder) -> None:
    """Check that trainable weights are float32, and that its layers attend as they should.

    Raises:
        ConfigError: trainable weights have less than 32 bits, or layers attend otherwise.

    """
    low_precision = {str(p.dtype).removeprefix("torch.") for p in encoder.parameters() if p.requires_grad} - {"float32"}
    if low_precision:
        raise ConfigError(
            f"Trainable weights are {', '.join(sorted(low_precision))}, in which updates of a usual learning rate are "
            f"lost to rounding: add lora=r16 (its weights are float32), or model.dtype=float32 with "
            f"train.mixed_precision=bf16."
        )
    if encoder.is_llm:
        check_bidirectional_layers(encoder.backbone, encoder.bidirectional_from)


def _format_of(config: TrainConfig, data: RunData, data_format: DataFormat, source: str = "") -> DataFormatConfig:
    """Return what the training rows of a source are, or with "" all."""
    graded = config.data_format.graded
    if source and data_format.name != "A":  # what is requested is meant for the others
        graded = False
    if graded is None:
        labels, names = data.labels(source), config.data.train.by_name().get(source, config.data.train).names()
        graded = sample.GRADED if names == [SAMPLE] else labels is not None and len(np.unique(labels)) > 2
    return DataFormatConfig(data_format.name, graded)


def _batch_spec(train_config: TrainingConfig, data: DataConfig, accelerator: Accelerator) -> BatchSpec:
    return BatchSpec(
        batch_size=train_config.batch_size,
        accumulation=train_config.gradient_accumulation_steps,
        duplicates=data.duplicates,
        shuffle=data.shuffle,
        seed=train_config.seed if data.seed is None else data.seed,
        world_size=accelerator.num_processes,
        rank=accelerator.process_index,
    )


def _largest_token_budget(gradient_cache: GradientCache, data: TrainingData, train_config: TrainingConfig) -> int:
    """Return the number of tokens of a micro-batch that fits into the memory of every process."""
    model, accelerator = gradient_cache.model, gradient_cache.accelerator
    longest, loss, row_texts = model.encoder.tokenizer.max_length, 0, len(data.formats[0].roles)
    batch_size, averaged = train_config.batch_size, train_config.average != "none"
    if isinstance(data, InMemoryTrainingData):
        longest = int(data.tokens.lengths.max())
        loss, row_texts, batch_size = data.largest_rows()
    budget = find_token_budget(
        gradient_cache, data.formats[loss], row_texts, batch_size, longest, loss, averaged=averaged
    )
    return all_reduce_min(budget, accelerator.num_processes)
