"""The schema: every setting with its type, default, meaning and validation.

This module is the single source of every default. The command line (through Hydra's files in conf/), Python and the
tests all go through `angle.settings.build_config`, which returns these dataclasses.

`None` ("null" on the command line) always means "decide from the model or the data". The decision is printed, and
saved in the run's `config.yaml`.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from angle.errors import ConfigError, nearest
from angle.prompts import NAMED_PROMPTS

#: Files in a run folder that more than one package uses.
CONFIG_FILE, RUN_FILE = "config.yaml", "run.json"

#: Environment variable from which the reference, angle_emb, reads the first bidirectional layer.
START_INDEX_VARIABLE = "BiLLM_START_INDEX"

#: Value of teacher.name_or_path for the student as it was before training.
SELF = "self"

FORMAT_NAMES = ("A", "B", "C")
DTYPES = ("float32", "bfloat16", "float16", "auto")
POOLING_NAMES = ("cls", "avg", "mean", "max", "last", "cls_avg", "cls_max")

#: Name of a user or a repository on the Hugging Face hub.
HUB_NAME = re.compile(r"(?!.*(--|\.\.|\.git$))\w([\w.-]*\w)?", re.ASCII)

#: Loss weights that the reference has renamed since its early releases: old name to new name.
OLD_WEIGHTS = {"w1": "cosine_w", "w2": "ibn_w", "w3": "angle_w"}

#: What `null` loss weights mean, by data format: (cosine_w, ibn_w, angle_w).
FORMAT_WEIGHTS = {"A": (1.0, 20.0, 1.0), "B": (0.0, 20.0, 1.0), "C": (0.0, 20.0, 0.0)}


def _one_of(setting: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        hint = nearest(str(value), allowed) or "."
        raise ConfigError(f"{setting}={value} is not known{hint} Choose one of: {', '.join(allowed)}.")


def _at_least(setting: str, value: float | None, low: float, *, above: bool = False) -> None:
    if value is None:
        return
    if not math.isfinite(value) or value < low or (above and value == low):
        raise ConfigError(f"{setting}={value:g} cannot work: it must be {'above' if above else 'at least'} {low:g}.")


@dataclass
class ModelConfig:
    """The encoder and its token contract."""

    name_or_path: str = "tiny"
    """A hub name, a folder with weights, a run folder, a .gguf file (on the hub: repository/file.gguf), or `tiny`
    (built in: a small, randomly initialised BERT)."""
    tokenizer_name_or_path: str | None = None
    """Where to load the tokenizer from; null: from the model."""
    adapter: str | None = None
    """A saved LoRA adapter to start from: trained further with lora=none, otherwise frozen beneath a new adapter.
    An adapter given as name_or_path is merged into its base with lora=none, otherwise frozen too."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    trust_remote_code: bool = False
    """Run Python code that ships with the model's repository."""
    max_length: int | None = None
    """Maximum tokens per text, including the template and special tokens; null: the model's own limit, at most 512."""
    is_llm: bool | None = None
    """Whether the model is a decoder; null: detected. It is an error to contradict the architecture."""
    layers: int | None = None
    """Keep only the first `layers` layers; null: all."""
    dimensions: int | None = None
    """Keep only the first `dimensions` dimensions of an embedding; null: all."""
    dtype: str = "float32"
    """Type of the weights: float32, bfloat16, float16 or auto (as stored)."""
    load_kbit: int | None = None
    """4 or 8: quantise the weights to 4 bits (NF4) or 8 bits (LLM.int8) and freeze them, to train with lora; null:
    model.dtype. In 8-bit, the other texts of a batch change a text's embedding slightly."""
    attn_implementation: str | None = None
    """sdpa, eager or flash_attention_2; null: the choice of transformers."""
    padding_side: str | None = None
    """left or right; null: the tokenizer's own. It never changes an embedding."""
    prompt: str | None = None
    """Template applied to every text, with {text} and the names of any other columns; or A, B or C for one of
    angle_emb's templates; null: the model's own."""
    end_token: bool | None = None
    """Whether every text ends with the tokenizer's end token; null: as the tokenizer does. Last-token pooling needs an
    end, so null means true there if neither the tokenizer, the template nor the model's own description gives one."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory for about a third more time."""

    def __post_init__(self) -> None:
        _one_of("model.dtype", self.dtype, DTYPES)
        if self.load_kbit not in (None, 4, 8):
            raise ConfigError(f"model.load_kbit={self.load_kbit} cannot work: choose 4 or 8, or leave it out.")
        if self.padding_side is not None:
            _one_of("model.padding_side", self.padding_side, ("left", "right"))
        _at_least("model.max_length", self.max_length, 2)
        _at_least("model.layers", self.layers, 1)
        _at_least("model.dimensions", self.dimensions, 1)
        self.prompt = NAMED_PROMPTS.get(self.prompt or "", self.prompt)
        if self.prompt is not None and "{text}" not in self.prompt:
            raise ConfigError(
                f"model.prompt={self.prompt!r} has no {{text}}: write where the text goes, "
                f"for example 'model.prompt=\"Query: {{text}}\"', or choose one of {', '.join(NAMED_PROMPTS)}."
            )


@dataclass
class PoolingConfig:
    """How the hidden states of a text's tokens become one embedding."""

    strategy: str = "auto"
    """auto, cls, avg (mean), max, last, cls_avg, cls_max, or the index of a token. auto: what the model itself
    specifies, otherwise cls for encoders and avg for decoders."""

    def __post_init__(self) -> None:
        self.strategy = str(self.strategy)
        if not self.strategy.lstrip("-").isdigit():
            _one_of("pooling.strategy", self.strategy, ("auto", *POOLING_NAMES))
        elif self.strategy.startswith("-"):
            raise ConfigError(
                f"pooling.strategy={self.strategy} cannot work: count tokens from 0; "
                f"for the last token type pooling.strategy=last."
            )


@dataclass
class LossConfig:
    """The objective: cosine_w * cosine + ibn_w * in-batch + angle_w * angle. A null weight takes the format's own."""

    cosine_w: float | None = None
    """Weight of the cosine ranking loss (formats A and B)."""
    ibn_w: float | None = None
    """Weight of the in-batch contrastive loss (all formats)."""
    angle_w: float | None = None
    """Weight of the angle ranking loss (formats A and B)."""
    cosine_tau: float = 20.0
    """Multiplier of the cosine similarities: an inverse temperature."""
    ibn_tau: float = 20.0
    """Multiplier of the in-batch similarities: an inverse temperature."""
    angle_tau: float = 20.0
    """Multiplier of the angle similarities: an inverse temperature."""
    positive_above: float | None = None
    """A row of format A is a positive of the in-batch loss iff its label is above this; null: 0 (sample data: 4)."""

    def __post_init__(self) -> None:
        for name in ("cosine_w", "ibn_w", "angle_w"):
            _at_least(f"loss.{name}", getattr(self, name), 0)
        for name in ("cosine_tau", "ibn_tau", "angle_tau"):
            _at_least(f"loss.{name}", getattr(self, name), 0, above=True)
        if self.cosine_w == self.ibn_w == self.angle_w == 0:
            raise ConfigError(
                "loss.cosine_w, loss.ibn_w and loss.angle_w are all 0, so there is nothing to learn: "
                "set one of them above 0."
            )

    def for_format(self, name: str) -> LossConfig:
        """Return a copy whose null weights are those of the data format `name`."""
        own = dict(zip(("cosine_w", "ibn_w", "angle_w"), FORMAT_WEIGHTS[name], strict=True))
        weights = {key: value if getattr(self, key) is None else getattr(self, key) for key, value in own.items()}
        if name == "C" and not weights["ibn_w"]:
            raise ConfigError(
                "loss.ibn_w=0 leaves nothing to learn: format C (text, positive) has only the in-batch "
                "loss; set loss.ibn_w above 0."
            )
        return dataclasses.replace(self, **weights)


@dataclass
class LoraConfig:
    """Low-rank adapters: train a few added weights and keep the model's own frozen."""

    enabled: bool = False
    """Whether to train adapters instead of the model's own weights."""
    r: int = 32
    """Rank."""
    alpha: int = 64
    """Scale: the adapter's output is multiplied by alpha / r."""
    dropout: float = 0.1
    """Dropout on the adapter's input."""
    target_modules: list[str] | None = None
    """Names of the linear layers that get adapters; null: all of them."""

    def __post_init__(self) -> None:
        _refuse_fields_while_off("lora", self, "lora=r16")
        _at_least("lora.r", self.r, 1)
        _at_least("lora.alpha", self.alpha, 1)
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"lora.dropout={self.dropout:g} cannot work: it must be at least 0 and below 1.")


def _refuse_fields_while_off(group: str, config: Any, example: str) -> None:
    if config.enabled:
        return
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if value != item.default:
            raise ConfigError(
                f"{group}.{item.name}={value} has no effect while {group} is off: add {example} or "
                f"{group}.enabled=true, or leave it out."
            )


@dataclass
class BillmConfig:
    """BiLLM: decoder layers with bidirectional attention."""

    enabled: bool = False
    """Whether these settings choose the layers; false: those that the model itself specifies, otherwise none."""
    start_index: int | None = None
    """First bidirectional layer, counted from 0; -1 or the number of layers: none; null: BiLLM_START_INDEX, or 0."""
    last_layers: int | None = None
    """Make the last `last_layers` layers bidirectional; an alternative to start_index."""
    model_class: str | None = None
    """Class that the decoder must have, such as LlamaForCausalLM; null: any."""

    def __post_init__(self) -> None:
        _refuse_fields_while_off("billm", self, "billm=all")
        _at_least("billm.start_index", self.start_index, -1)
        _at_least("billm.last_layers", self.last_layers, 1)
        if self.start_index is not None and self.last_layers is not None:
            raise ConfigError(
                f"billm.start_index={self.start_index} and billm.last_layers={self.last_layers} both say where to "
                f"begin: leave one out."
            )

    def first_layer(self, layers: int) -> int | None:
        """Return the first bidirectional layer of a model with `layers` layers, or None if there is none.

        Raises:
            ConfigError: the model has no such layer, or BiLLM_START_INDEX contradicts these settings.

        """
        start = self.start_index
        told = os.environ.get(START_INDEX_VARIABLE)
        if told is not None:
            if not told.lstrip("-").isdigit() or self.last_layers is not None or start not in (None, int(told)):
                raise ConfigError(
                    f"{START_INDEX_VARIABLE}={told} contradicts billm.start_index={start} and billm.last_layers="
                    f"{self.last_layers}: unset it, or give a whole number there alone."
                )
            start = int(told)
        if self.last_layers is not None:
            if self.last_layers > layers:
                raise ConfigError(f"billm.last_layers={self.last_layers} cannot work: the model has {layers} layers.")
            return layers - self.last_layers
        start = 0 if start is None else start
        if start > layers:
            raise ConfigError(
                f"billm.start_index={start} cannot work: the model has the layers 0 to {layers - 1}; give one of them, "
                f"or -1 for none."
            )
        return start if 0 <= start < layers else None


@dataclass
class EseConfig:
    """Espresso embeddings (ESE): usable embeddings from every layer, and from its first dimensions only."""

    enabled: bool = False
    """Whether to train every layer, rather than only the last one at full width."""
    compression_size: int = 128
    """Number of leading dimensions that are trained to work without the others; must be even."""
    kl_temperature: float = 1.0
    """Temperature of the divergence from the compressed embeddings; 0: only their squared error."""
    pca: bool = True
    """Whether the first dimensions learn to be a compression of all of them."""
    compat: bool = False
    """Sum over the layers as angle_emb does: with the embedding layer, without the second-to-last layer."""

    def __post_init__(self) -> None:
        _refuse_fields_while_off("ese", self, "ese=on")
        _at_least("ese.compression_size", self.compression_size, 2)
        _at_least("ese.kl_temperature", self.kl_temperature, 0)
        if self.compression_size % 2:
            raise ConfigError(
                f"ese.compression_size={self.compression_size} cannot work: the angle loss splits an embedding into a "
                f"real and an imaginary half; choose an even number."
            )
        if not self.pca and self.kl_temperature != EseConfig.kl_temperature:
            raise ConfigError(
                f"ese.kl_temperature={self.kl_temperature:g} has no effect with ese.pca=false, which leaves out the "
                f"divergence: leave one out."
            )


@dataclass
class TeacherConfig:
    """Alignment with the hidden states of a frozen teacher, which reads the same token ids as the student."""

    enabled: bool = False
    """Whether the alignment is part of the loss."""
    name_or_path: str | None = None
    """The teacher, as in model.name_or_path; `self`: the student as it was before training."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    trust_remote_code: bool = False
    """Run Python code that ships with the teacher's repository."""
    pooling: str = "auto"
    """How to pool the teacher's hidden states into the embedding that the student's is aligned with, as in
    pooling.strategy; `tokens`: align the hidden states of every token instead."""
    weight: float = 1.0
    """Weight of the alignment in the loss."""
    temperature: float = 1.0
    """Temperature of the divergence between the two softmaxes over dimensions; 0: no divergence."""
    mse_w: float = 0.0
    """Weight of the mean squared error in the alignment."""
    projection: bool = False
    """Train a linear map from the student's dimensions to the teacher's."""
    dtype: str | None = None
    """Type of the teacher's weights: float32, bfloat16, float16 or auto (as stored); null: float32, or the student's
    type for `self`."""
    load_kbit: int | None = None
    """4 or 8: quantise the teacher's weights to 4 or 8 bits; null: not quantised, or as the student for `self`."""
    cache: bool = False
    """Compute the teacher's embeddings of all texts once, before training and without autocast, and keep them on
    disk."""

    def __post_init__(self) -> None:
        _refuse_fields_while_off("teacher", self, "teacher=self")
        if self.dtype is not None:
            _one_of("teacher.dtype", self.dtype, DTYPES)
        _one_of("teacher.pooling", self.pooling, ("auto", "tokens", *POOLING_NAMES))
        for name in ("weight", "temperature", "mse_w"):
            _at_least(f"teacher.{name}", getattr(self, name), 0)
        if self.load_kbit not in (None, 4, 8):
            raise ConfigError(f"teacher.load_kbit={self.load_kbit} cannot work: choose 4 or 8, or leave it out.")
        if not self.enabled:
            return
        if self.name_or_path is None:
            raise ConfigError(
                "teacher.name_or_path is missing: give the teacher, for example "
                "teacher.name_or_path=WhereIsAI/UAE-Large-V1, or type teacher=self."
            )
        if self.name_or_path == SELF and self.revision is not None:
            raise ConfigError(
                f"teacher.revision={self.revision} cannot work with teacher.name_or_path={SELF}, which is of the "
                f"student's own: leave one out."
            )
        if not self.weight or not (self.temperature or self.mse_w):
            raise ConfigError(
                f"teacher.weight={self.weight:g} with teacher.temperature={self.temperature:g} and "
                f"teacher.mse_w={self.mse_w:g} aligns nothing: set teacher.weight, and one of the others, above 0, or "
                f"type teacher=none."
            )
        if self.cache and self.pooling == "tokens":
            raise ConfigError(
                "teacher.cache=true cannot work with teacher.pooling=tokens, whose states would fill the disk: leave "
                "one out."
            )


@dataclass
class DataFormatConfig:
    """The shape of the training rows."""

    name: str = "auto"
    """A (text1, text2, label), B (text, positive, negative), C (text, positive) or auto (from the columns)."""

    def __post_init__(self) -> None:
        _one_of("data_format.name", self.name, ("auto", *FORMAT_NAMES))


def label_name(label: object) -> str:
    """Return a label's name in `label_map`: a whole number has no decimal point, whatever its stored type."""
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
    """The split; null: train, validation or test, depending on the source's role. A plain file has none."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    columns: dict[str, str] = field(default_factory=dict)
    """Columns to rename, as {wanted: found}, for example {text1: sentence1, text2: sentence2, label: score}."""
    label_map: dict[Any, float | None] = field(default_factory=dict)
    """Numbers for labels, for example {entailment: 1, contradiction: 0, neutral: null}; null drops the row."""

    def __post_init__(self) -> None:
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
    duplicates: str = "mask"
    """What to do with equal texts in a batch: mask (never negatives of each other), drop (the later row) or keep (as
    negatives). With mask and drop, a text's positives in any row of the batch are not its negatives either."""
    shuffle: bool = True
    """Shuffle the training rows anew every epoch."""
    seed: int | None = None
    """Seed of the shuffling; null: train.seed."""
    streaming: bool = False
    """Stream the training rows instead of loading them all at once; needs train.max_steps."""
    stream_window: int = 10_000
    """Streaming: number of rows held in memory, and shuffled among themselves, at a time."""

    def __post_init__(self) -> None:
        _one_of("data.duplicates", self.duplicates, ("mask", "drop", "keep"))
        _at_least("data.stream_window", self.stream_window, 1)
        _at_least("data.seed", self.seed, 0)
        for role in ("train", "valid", "valid_sts", "test"):
            value = getattr(self, role).name_or_path
            entries = value if isinstance(value, list) else [value]
            if not entries or any(not (isinstance(e, str) or (e is None and value is None)) for e in entries):
                raise ConfigError(
                    f"data.{role}.name_or_path={value} cannot work: give a name or path, or a list of "
                    f"them such as data.{role}.name_or_path=[a.jsonl,b.jsonl]."
                )


@dataclass
class TrainingConfig:
    """The training loop."""

    epochs: int = 1
    """Passes over the training rows."""
    max_steps: int | None = None
    """Optimiser steps; overrides epochs."""
    batch_size: int = 32
    """Rows per process in one evaluation of the objective. The rows of all processes together supply the negatives."""
    gradient_accumulation_steps: int = 1
    """Batches whose gradients are averaged for one optimiser step."""
    token_budget: str | None = None
    """Maximum tokens per micro-batch, or auto for as many as fit into memory. A larger batch is split
    (gradient cache): up to half as long again, and the same result but for dropout's draws; null: never split."""
    learning_rate: float | None = None
    """Peak learning rate; null: 5e-5, or 2e-4 for adapters, or 2e-3 for the randomly initialised `tiny`."""
    weight_decay: float = 0.0
    """AdamW's weight decay, applied to matrices only: never to biases and norms."""
    warmup_steps: float = 0.1
    """Steps of linear warm-up; below 1, the fraction of all steps."""
    scheduler: str = "linear"
    """Learning rate after the warm-up: linear or cosine (both decay to 0), or constant."""
    max_grad_norm: float = 1.0
    """Clip gradients to this norm; 0: never."""
    mixed_precision: str = "no"
    """no, bf16 or fp16 (needs a GPU). Pooling and losses are always float32."""
    packing: str = "auto"
    """auto: pack a batch's texts into one row without padding, on CPUs and CUDA, if a check of the model shows that
    this changes nothing; "off": pad them, for comparison."""
    compile: bool = False
    """Compile the layers (torch.compile) at the start, for all batch sizes. Meant for GPUs; no gain on CPUs."""
    seed: int = 42
    """Seed of the adapters' initialisation, of dropout, and of the order of rows unless data.seed is given."""
    logging_steps: int = 10
    """Steps between two lines of metrics."""
    eval_steps: int | None = None
    """Steps between two evaluations; null: after every epoch; 0: only at the end."""
    save_steps: int | None = None
    """Steps between two checkpoints; null: a tenth of the run's steps; 0: no checkpoints."""
    save_total_limit: int = 2
    """Number of checkpoints to keep, newest first."""
    resume: str | None = None
    """A run folder to resume, with the settings that the run was started with."""
    output_dir: str | None = None
    """The run folder; null: runs/<date>/<time>."""
    dry_run: bool = False
    """Build everything, train once on the longest batch, print memory and time, and write nothing."""

    def __post_init__(self) -> None:
        for name in (
            "epochs",
            "max_steps",
            "batch_size",
            "gradient_accumulation_steps",
            "logging_steps",
            "save_total_limit",
        ):
            _at_least(f"train.{name}", getattr(self, name), 1)
        for name in ("weight_decay", "warmup_steps", "max_grad_norm", "seed", "eval_steps", "save_steps"):
            _at_least(f"train.{name}", getattr(self, name), 0)
        _at_least("train.learning_rate", self.learning_rate, 0, above=True)
        if self.dry_run and self.resume is not None:
            raise ConfigError(
                f"train.resume={self.resume} cannot work with train.dry_run=true, which tries a new run's settings: "
                f"leave one out."
            )
        if self.token_budget not in (None, "auto") and not (self.token_budget.isdigit() and int(self.token_budget)):
            raise ConfigError(
                f"train.token_budget={self.token_budget} cannot work: give a number of tokens, such as 8192, auto for "
                f"as many as fit into memory, or null for whole batches."
            )
        _one_of("train.scheduler", self.scheduler, ("linear", "cosine", "constant"))
        _one_of("train.mixed_precision", self.mixed_precision, ("no", "bf16", "fp16"))
        if self.packing in ("False", "false"):
            raise ConfigError(
                'train.packing=false is not known: YAML reads off as false unless it is quoted; write packing: "off" '
                "there, or train.packing=off on the command line."
            )
        _one_of("train.packing", self.packing, ("auto", "off"))

    @property
    def tokens_at_once(self) -> int | None:
        """Maximum tokens per micro-batch, None for no limit; with `auto`, defined only once it is decided."""
        return None if self.token_budget is None else int(self.token_budget)


@dataclass
class TrackingConfig:
    """Weights & Biases. The environment variable WANDB_MODE overrides `mode`."""

    mode: str = "disabled"
    """disabled, online or offline."""
    project: str = "angle"
    """Project that the run is listed under."""
    entity: str | None = None
    """User or team; null: your own."""
    name: str | None = None
    """Name of the run; null: the run folder's."""
    tags: list[str] = field(default_factory=list)
    """Labels to find the run by."""

    def __post_init__(self) -> None:
        _one_of("tracking.mode", self.mode, ("disabled", "online", "offline"))


@dataclass
class HubConfig:
    """The Hugging Face hub. Its token comes from HF_TOKEN or `hf auth login`, and is never written anywhere."""

    push: bool = False
    """Whether to push the best model, or the final one if none was selected, once training is over."""
    model_id: str | None = None
    """The repository to push to: user/name."""
    private: bool = True
    """Whether a new repository is private."""

    def __post_init__(self) -> None:
        if self.push and self.model_id is None:
            raise ConfigError("hub.push=true needs hub.model_id: add for example hub.model_id=user/my-encoder.")
        if self.model_id is None:
            return
        if not self.push:
            raise ConfigError(f"hub.model_id={self.model_id} has no effect alone: add hub.push=true, or leave it out.")
        names = self.model_id.split("/")
        if len(names) != 2 or not all(map(HUB_NAME.fullmatch, names)) or len(self.model_id) > 96:
            raise ConfigError(
                f"hub.model_id={self.model_id} cannot work: write user/name, at most 96 letters, digits, -, _ and ., "
                f"without - or . at an end, -- or .. inside, or .git at the end."
            )


@dataclass
class TrainConfig:
    """Everything `train.py` takes."""

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

    def __post_init__(self) -> None:
        if not self.data.train.names():
            raise ConfigError(
                "data.train.name_or_path is missing: give a file, a folder or a hub name, for example "
                "data.train.name_or_path=pairs.jsonl."
            )
        if self.data.streaming and self.train.max_steps is None:
            raise ConfigError(
                "data.streaming=true needs train.max_steps, for a stream has no known length: add for "
                "example train.max_steps=1000."
            )
        if self.model.load_kbit is not None and not self.lora.enabled and self.model.adapter is None:
            raise ConfigError(
                f"model.load_kbit={self.model.load_kbit} freezes the weights, so there is nothing to train: "
                f"add lora=r16."
            )
        if self.teacher.enabled and self._is_own_teacher():
            self.teacher = dataclasses.replace(self.teacher, name_or_path=SELF, revision=None)
        if self.teacher.cache and self.data.streaming:
            raise ConfigError(
                "teacher.cache=true cannot work with data.streaming=true, for a stream's texts are not known before "
                "training: leave one out."
            )
        if self.data_format.name != "auto":
            self.loss = self.loss.for_format(self.data_format.name)
        for role, split in (("valid", "validation"), ("valid_sts", "validation"), ("test", "test")):
            self._check_held_out(role, split)

    def _check_held_out(self, role: str, default_split: str) -> None:
        """Raise ConfigError if the held-out rows of `role` are also the training rows."""
        train, held_out = self.data.train, getattr(self.data, role)
        same_split = (held_out.split or default_split) == (train.split or "train") and held_out.subset == train.subset
        for name in train.names():
            is_file = Path(name).is_file()  # a file has no splits
            if name in held_out.names() and (is_file or same_split):
                hint = "" if is_file else f", for example data.{role}.split={default_split}"
                said = f"data.{role} is the training data itself, so it would measure nothing"
                raise ConfigError(f"{said}: give other rows than those of {name}{hint}.")

    def _is_own_teacher(self) -> bool:
        """Return whether the named teacher is the model that training starts from."""
        model, teacher = self.model, self.teacher
        if model.adapter is not None or model.layers is not None or model.dimensions is not None:
            return False
        places = {Path(name).resolve() for name in (model.name_or_path, str(teacher.name_or_path))}
        return len(places) == 1 and teacher.revision in (None, model.revision)


@dataclass
class EvaluateConfig:
    """Everything `evaluate.py` takes."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The model; its prompt, pooling and maximum length are those it was trained with unless given here."""
    pooling: PoolingConfig = field(default_factory=PoolingConfig)
    tasks: list[str] | None = None
    """stsb, sickr, sts12 ... sts16, sts (all seven), or files in format A; null: the run's own test set."""
    columns: dict[str, str] = field(default_factory=dict)
    """A file's columns to rename, as {wanted: found}."""
    label_map: dict[Any, float | None] = field(default_factory=dict)
    """Numbers for a file's labels; null drops the row."""
    positive_above: float | None = None
    """For the accuracy, labels above this are positive; null: 0.5, or for a run's own test set as in its training."""
    batch_size: int = 64
    """Texts per batch."""
    ese_grid: bool = False
    """Score every combination of depth and width of the embeddings, all in one pass."""
    ese_depths: list[int] | None = None
    """Depths of the grid, in layers; null: all, or every second, third, ... and the last if there are more than 12."""
    ese_widths: list[int] | None = None
    """Widths of the grid, in dimensions; null: 8, 16, 32, ... and all."""
    output_dir: str | None = None
    """Folder for results.json and the scores of the pairs; null: evaluations/<date>/<time>."""

    def __post_init__(self) -> None:
        _at_least("batch_size", self.batch_size, 1)
        for name in ("ese_depths", "ese_widths"):
            numbers = getattr(self, name)
            if numbers is None:
                continue
            if not self.ese_grid:
                raise ConfigError(f"{name}={numbers} has no effect without a grid: add ese_grid=true, or leave it out.")
            for number in numbers or [0]:
                _at_least(name, number, 1)
        if self.ese_grid and self.positive_above is not None:
            raise ConfigError(
                f"positive_above={self.positive_above:g} has no effect with ese_grid=true, which has no accuracy: "
                f"leave one out."
            )
        if self.tasks is not None and not self.tasks:
            raise ConfigError("tasks=[] measures nothing: give for example tasks=[stsb,sickr] or tasks=[pairs.jsonl].")


@dataclass
class ConvertConfig:
    """Everything `convert.py` takes."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The model to convert, usually model.name_or_path=RUN."""
    pooling: PoolingConfig = field(default_factory=PoolingConfig)
    merge: bool = True
    """Merge an adapter into the weights; false: keep it separate, so the folder needs the base model at its path."""
    normalize: bool = False
    """Add a module that scales every embedding to unit length."""
    output_dir: str | None = None
    """The new folder; null: sentence_transformers inside the run folder."""
