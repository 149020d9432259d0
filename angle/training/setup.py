"""Setup before the first step: the accelerator, the data, and a decision on every open setting."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from angle.config import SELF, BillmConfig, DataFormatConfig, PoolingConfig, SourceConfig, TrainConfig
from angle.data import sample
from angle.data.batching import BatchSpec, CorpusData, StreamData, TrainingData
from angle.data.corpus import Corpus, load_corpus
from angle.data.sources import SAMPLE
from angle.distributed.environment import launch_command
from angle.distributed.process_group import TIMEOUT, all_reduce_min, check_world_size, has_gpu
from angle.errors import ConfigError, DataError
from angle.evaluation.sts import load_sts
from angle.modeling.bidirectional import check_directions
from angle.modeling.compiling import compile_layers
from angle.modeling.description import TINY
from angle.modeling.encoder import Encoder
from angle.modeling.token_embeddings import train_only_tokens
from angle.modeling.trainable import TrainableEncoder
from angle.objective.combined import CombinedLoss
from angle.objective.espresso import EspressoLoss
from angle.objective.objective import Objective
from angle.training.checkpoint import seed_everything
from angle.training.distributed import query_shards
from angle.training.kernels import choose_run_kernels
from angle.training.memory import find_token_budget
from angle.training.sharding import enable_fsdp_on_cpu, sharding_plugin
from angle.training.step import Step
from angle.training.teacher import Teacher, load_teacher

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Data:
    """The corpora of a run; None where none was requested."""

    train: TrainingData
    valid: Corpus | None
    valid_sts: Corpus | None
    test: Corpus | None

    @property
    def fingerprints(self) -> dict[str, str | None]:
        """Hashes of the data trained and evaluated on."""
        sets = {"train": self.train, "valid": self.valid, "valid_sts": self.valid_sts, "test": self.test}
        return {name: rows.fingerprint for name, rows in sets.items() if rows is not None}


def start_accelerator(config: TrainConfig) -> Accelerator:
    """Return the accelerator for this process.

    Raises:
        ConfigError: a precision that the device lacks, weights that cannot be sharded as the launcher requests, or a
            launcher that started a different number of processes than it announced.

    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

    plugin = sharding_plugin(config)
    # The second job of a sweep may use another precision, and shards its weights anew.
    AcceleratorState._reset_state(reset_partial_state=True)
    on_cpu = not has_gpu()
    if on_cpu and config.train.mixed_precision == "fp16":
        raise ConfigError(
            "train.mixed_precision=fp16 needs a GPU, and none is here: type train.mixed_precision=bf16 or leave it out."
        )
    accelerator = Accelerator(
        cpu=on_cpu,
        mixed_precision=config.train.mixed_precision,
        fsdp_plugin=plugin,
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=TIMEOUT),
            DistributedDataParallelKwargs(gradient_as_bucket_view=True),  # one copy of the gradients, not two
        ],
    )
    if plugin is not None and on_cpu:
        enable_fsdp_on_cpu(accelerator, plugin)
    check_world_size(accelerator.num_processes, "train.py")
    return accelerator


@dataclass(frozen=True)
class Built:
    """What a run works with, before it has a folder."""

    config: TrainConfig
    """The settings, with everything decided."""
    trainable: TrainableEncoder
    teacher: Teacher | None
    data: Data
    objective: Objective
    valid_loss: CombinedLoss | None
    """The loss of the last layer, for the format of data.valid."""

    @property
    def encoder(self) -> Encoder:
        """The encoder that is trained."""
        return self.trainable.encoder

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the run."""
        train = self.config.train
        return train.max_steps or train.epochs * (self.data.train.steps_per_epoch or 0)


def build(config: TrainConfig, accelerator: Accelerator) -> Built:
    """Load the model and the data, check that they are compatible, and decide what was left open.

    Raises:
        ConfigError, DataError: anything wrong with the settings or the data.

    """
    train = config.train
    seed_everything(train.seed, rank=0)
    choose = partial(choose_run_kernels, train.packing)
    encoder = Encoder.load(config.model, config.pooling, config.lora, config.billm, choose=choose)
    encoder.to(accelerator.device)
    with accelerator.autocast():
        encoder.try_packing(training=True)
    batch_spec = BatchSpec(
        train.batch_size,
        train.gradient_accumulation_steps,
        config.data.duplicates,
        config.data.shuffle,
        train.seed if config.data.seed is None else config.data.seed,
        accelerator.num_processes,
        accelerator.process_index,
    )
    check_precision(encoder)
    if encoder.is_llm:
        check_directions(encoder.backbone, encoder.bidirectional_from)
    with accelerator.main_process_first():  # the others find the tokens in the cache
        data = load_data(config, encoder, batch_spec)
    config = decide(config, encoder, data)
    if isinstance(data.train, CorpusData) and not train.weight_decay:
        train_only_tokens(encoder.backbone, data.train.corpus.tokens.ids)
    duplicates, width = config.data.duplicates, encoder.dimensions
    loss = CombinedLoss(config.loss, data.train.format, width, duplicates, query_shards(accelerator))
    espresso = EspressoLoss(loss, config.ese, encoder.depths.layers, width) if config.ese.enabled else None
    objective = Objective(espresso or loss, config.teacher)
    valid_loss = None
    if data.valid is not None:
        valid_loss = CombinedLoss(config.loss, data.valid.format, width, duplicates)
    teacher = load_teacher(config, encoder, accelerator)
    if teacher is not None and config.teacher.cache:
        assert isinstance(data.train, CorpusData)
        with accelerator.main_process_first():  # the others find the embeddings in the cache
            teacher.keep(data.train.corpus.tokens)
    aligns = None if teacher is None else "tokens" if teacher.of_tokens else "texts"
    projected_to = teacher.width if teacher is not None and config.teacher.projection else None
    trainable = TrainableEncoder(encoder, objective.depths, aligns, projected_to)
    if train.compile:
        with accelerator.autocast():
            compile_layers(encoder)
    if train.token_budget == "auto":
        longest = encoder.tokenizer.max_length
        if isinstance(data.train, CorpusData):
            longest = int(data.train.corpus.tokens.lengths.max())
        step = Step(trainable, objective, teacher, accelerator)
        budget = find_token_budget(step, data.train.format, train.batch_size, longest)
        budget = all_reduce_min(budget, accelerator.num_processes)
        config = replace(config, train=replace(config.train, token_budget=str(budget)))
    return Built(config, trainable, teacher, data, objective, valid_loss)


def make_optimizer(model: torch.nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Return AdamW for the trainable parameters; only matrices decay: biases and norms have no target to shrink to."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.train.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    # The loop sets the learning rate before every step.
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=0.0, fused=True)


def check_processes(record: dict[str, Any], accelerator: Accelerator) -> None:
    """Raise ConfigError if a run would resume with another number of processes: its batches would differ."""
    processes = record["hardware"]["processes"]
    if processes != accelerator.num_processes:
        raise ConfigError(
            f"The run was started with {processes} process{'es' if processes > 1 else ''} and would see other batches "
            f"with {accelerator.num_processes}: go on with {launch_command(processes)} train.py ..."
        )


def check_precision(encoder: Encoder) -> None:
    """Raise ConfigError if the precision of trainable weights is too coarse for small steps."""
    coarse = {str(p.dtype).removeprefix("torch.") for p in encoder.parameters() if p.requires_grad} - {"float32"}
    if coarse:
        raise ConfigError(
            f"The weights to train are {', '.join(sorted(coarse))}, too coarse for steps of a usual learning rate: add "
            f"lora=r16 (its weights are float32), or model.dtype=float32 with train.mixed_precision=bf16."
        )


def load_data(config: TrainConfig, encoder: Encoder, batch_spec: BatchSpec) -> Data:
    """Read, check and tokenise everything that the run trains and evaluates on."""
    data = _with_sample_splits(config).data
    tokenizer, wanted = encoder.tokenizer, config.data_format.name
    train: TrainingData
    if data.streaming:
        train = StreamData(data.train, wanted, tokenizer, batch_spec, data.stream_window)
    else:
        train = CorpusData(load_corpus(data.train, "train", tokenizer, wanted), batch_spec)
    if config.train.batch_size * batch_spec.processes == 1 and train.format.name != "B":
        raise ConfigError(
            "train.batch_size=1 leaves a row no other row to be compared with: choose 2 or more, or use "
            "triples (format B)."
        )
    valid = load_corpus(data.valid, "valid", tokenizer) if data.valid.names() else None
    if data.valid_sts.names():
        valid_sts: Corpus | None = load_sts(data.valid_sts, "valid_sts", encoder.tokenizer)
    else:
        valid_sts = valid if valid is not None and valid.format.name == "A" else None
    test = load_sts(data.test, "test", encoder.tokenizer) if data.test.names() else None
    loaded = Data(train, valid, valid_sts, test)
    for role, corpus in (("valid", valid), ("valid_sts", valid_sts), ("test", test)):
        if corpus is not None and corpus.fingerprint == train.fingerprint:
            raise DataError(f"data.{role} has the rows that are trained on, so it would measure nothing: give others.")
    _check_lengths(loaded, encoder.pooling)
    return loaded


def _check_lengths(data: Data, pooling: str) -> None:
    """Raise DataError if texts are too short for a pooling that selects a token by its index."""
    if not pooling.isdigit():
        return
    corpora = {"train": data.train.corpus if isinstance(data.train, CorpusData) else None}
    for role, corpus in (corpora | {"valid": data.valid, "valid_sts": data.valid_sts, "test": data.test}).items():
        short = 0 if corpus is None else int((corpus.tokens.lengths <= int(pooling)).sum())
        if short:
            raise DataError(
                f"pooling.strategy={pooling} asks for token {pooling} (counted from 0), but {short} texts of "
                f"data.{role} are shorter; choose a smaller number, or cls, avg or last."
            )


def _with_sample_splits(config: TrainConfig) -> TrainConfig:
    """Return the settings with the sample's own validation and test splits if no others are given."""
    data = config.data
    others = (data.valid, data.valid_sts, data.test)
    if data.train.names() != [SAMPLE] or any(source.names() for source in others):
        return config
    return replace(
        config,
        data=replace(data, valid_sts=SourceConfig(SAMPLE, split="validation"), test=SourceConfig(SAMPLE, split="test")),
    )


def decide(config: TrainConfig, encoder: Encoder, data: Data) -> TrainConfig:
    """Return the settings, filled in where left to the model or the data, so that they state what is run."""
    contract = encoder.contract
    on_sample = config.data.train.names() == [SAMPLE]
    name = data.train.format.name
    loss = config.loss.for_format(name)
    if loss.positive_above is None:
        loss = replace(loss, positive_above=sample.POSITIVE_ABOVE if on_sample and name == "A" else 0.0)
    learning_rate, adapters = config.train.learning_rate, config.lora.enabled or config.model.adapter
    if learning_rate is None:
        learning_rate = 2e-3 if config.model.name_or_path == TINY else 2e-4 if adapters else 5e-5
    config = _with_sample_splits(config)
    sets = config.data
    return replace(
        config,
        data=replace(
            sets,
            train=_from_anywhere(sets.train),
            valid=_from_anywhere(sets.valid),
            valid_sts=_from_anywhere(sets.valid_sts),
            test=_from_anywhere(sets.test),
        ),
        model=replace(
            config.model,
            name_or_path=_absolute(config.model.name_or_path),
            adapter=config.model.adapter and _absolute(config.model.adapter),
            max_length=contract.max_length,
            prompt=contract.prompt,
            is_llm=contract.is_llm,
            padding_side=contract.padding_side,
            end_token=encoder.tokenizer.tokenizer.eos_token in contract.special_tokens[1],
            kernels=None if encoder.kernels is None else list(encoder.kernels.selected),
        ),
        pooling=PoolingConfig(contract.pooling),
        teacher=replace(
            config.teacher, name_or_path=config.teacher.name_or_path and _absolute(config.teacher.name_or_path)
        ),
        billm=_billm(contract.bidirectional_from, requested=config.billm.enabled),
        loss=loss,
        data_format=DataFormatConfig(name),
        train=replace(config.train, learning_rate=learning_rate),
    )


def _from_anywhere(source: SourceConfig) -> SourceConfig:
    """Return a source whose files are found from any working directory."""
    names = [_absolute(name) for name in source.names()]
    return replace(source, name_or_path=names if isinstance(source.name_or_path, list) else next(iter(names), None))


def _absolute(name: str) -> str:
    path = Path(name).expanduser()
    return str(path.resolve()) if name not in (SAMPLE, TINY, SELF) and path.exists() else name


def _billm(start: int | None, *, requested: bool) -> BillmConfig:
    """Return settings that hold whatever the model's own configuration says, if any were requested."""
    if start is None:
        return BillmConfig(enabled=True, start_index=-1) if requested else BillmConfig()
    return BillmConfig(enabled=True, start_index=start)
