"""The training loop."""

from __future__ import annotations

from dataclasses import dataclass

from angle.config.values import LARGEST_INT, check_fields, declared, expand_home
from angle.errors import ConfigError

#: The value of train.dropout that leaves a model its own.
OWN_DROPOUT = "own"


@dataclass
class TrainingConfig:
    """The training loop."""

    epochs: int = declared(1, at_least=1)
    """Passes over the training rows."""
    max_steps: int | None = declared(None, at_least=1)
    """Optimiser steps; overrides epochs."""
    batch_size: int = declared(32, at_least=1)
    """Rows per process in one evaluation of the objective. The rows of all processes together supply the negatives."""
    gradient_accumulation_steps: int = declared(1, at_least=1)
    """Batches whose gradients are averaged for one optimiser step."""
    token_budget: str | None = None
    """Maximum tokens per micro-batch, or auto for as many as fit into memory. A larger batch is split
    (gradient cache): up to half as long again, and the same result but for dropout's draws; null: never split."""
    learning_rate: float | None = declared(None, above=0)
    """Peak learning rate; null: 5e-5, or 2e-4 for adapters, or 2e-3 for the randomly initialised `tiny`."""
    layer_decay: float = declared(1.0, above=0)
    """Learning rate of a layer as a fraction of that of the layer above it, at most 1; the last one has the whole rate,
    the embeddings one more decay than the first layer."""
    weight_decay: float = declared(0.0, at_least=0)
    """AdamW's weight decay, applied to matrices only: never to biases and norms."""
    adam_beta1: float = declared(0.9, at_least=0)
    """AdamW's decay of the mean of gradients, below 1."""
    adam_beta2: float = declared(0.999, at_least=0)
    """AdamW's decay of the mean of their squares, below 1."""
    adam_epsilon: float = declared(1e-8, above=0)
    """What AdamW adds to the square root of that mean."""
    warmup_steps: float = declared(0.1, at_least=0)
    """Steps of linear warm-up; below 1, the fraction of all steps."""
    scheduler: str = declared("linear", choices=("linear", "cosine", "inverse_sqrt", "constant"))
    """Learning rate after the warm-up: linear or cosine (both decay to 0), inverse_sqrt (of the step), or constant."""
    average: str = declared("none", choices=("none", "ema", "last"))
    """What is evaluated and saved: none: the weights as they are; ema: their exponential moving average; last: the mean
    of those of the last steps. It takes the memory of the trained weights once more."""
    average_window: float | None = declared(None, above=0)
    """Steps that train.average goes over; below 1, the fraction of all steps. ema: 1 / (1 - decay), so 1000 is a decay
    of 0.999. null: 0.1."""
    dropout: str | None = None
    """With what probability, below 1, dropout sets a number to 0 wherever the model has dropout; own: the model's own;
    null: 0, or own where a model drops in places that are not known. lora.dropout is another."""
    max_grad_norm: float = declared(1.0, at_least=0)
    """Clip gradients to this norm; 0: never."""
    mixed_precision: str = declared("no", choices=("no", "bf16", "fp16"))
    """no, bf16 or fp16 (needs a GPU). Pooling and losses are always float32."""
    packing: str = declared("auto", choices=("auto", "off"))
    """auto: as model.kernels says; off: without the kernel packing, so that a batch's texts are padded."""
    compile: bool = False
    """Compile the layers (torch.compile) at the start, for all batch sizes. Meant for GPUs; no gain on CPUs."""
    seed: int = declared(42, at_least=0)
    """Seed of the adapters' initialisation, of dropout, and of the order of rows unless data.seed is given."""
    logging_steps: int = declared(10, at_least=1)
    """Steps between two lines of metrics."""
    eval_steps: int | None = declared(None, at_least=0)
    """Steps between two evaluations; null: after every epoch; 0: only at the end."""
    eval_on_start: bool = True
    """Whether the model is measured before training, too, to compare with."""
    best_metric: str | None = None
    """Metric that chooses the best model, one of those measured on data.valid, data.valid_sts and data.valid_retrieval,
    such as loss, triplet_accuracy (format B), in_batch_accuracy (B, C) or ndcg@10; null: ndcg@10 if there is
    data.valid_retrieval and no data.valid_sts, else spearman if there are rows for it, else none."""
    patience: int | None = declared(None, at_least=1)
    """Stop early after this many evaluations in a row without a better train.best_metric than in earlier ones of the
    run; null: never."""
    min_gain: float = declared(0.0, at_least=0)
    """By how much a value must be better to count for train.patience: of 100, as scores are shown, or of the loss."""
    save_steps: int | None = declared(None, at_least=0)
    """Steps between two checkpoints; null: a tenth of the run's steps; 0: no checkpoints."""
    save_total_limit: int = declared(2, at_least=1)
    """Number of checkpoints to keep, newest first."""
    resume: str | None = None
    """A run folder to resume, with the settings that the run was started with."""
    output_dir: str | None = None
    """The run folder; null: runs/<date>/<time>."""
    dry_run: bool = False
    """Build everything, train once on the longest batch, print memory and time, and write nothing."""

    def __post_init__(self) -> None:
        self.resume = expand_home("train.resume", self.resume)
        self.output_dir = expand_home("train.output_dir", self.output_dir)
        if self.packing in ("False", "false"):  # what YAML reads off as
            self.packing = "off"
        check_fields("train", self)
        if self.min_gain and self.patience is None:
            raise ConfigError(
                f"train.min_gain={self.min_gain:g} has no effect without train.patience, the number of evaluations "
                f"that must gain more: add train.patience=3, or leave it out."
            )
        if self.average == "none" and self.average_window is not None:
            raise ConfigError(
                f"train.average_window={self.average_window:g} has no effect without train.average: add "
                f"train.average=ema or train.average=last, or leave it out."
            )
        if self.average == "last" and self.patience is not None:
            raise ConfigError(
                f"train.average=last cannot work with train.patience={self.patience}: a run that stops early has no "
                f"last steps to average; type train.average=ema, or leave one out."
            )
        for name in ("adam_beta1", "adam_beta2"):
            if getattr(self, name) >= 1:
                raise ConfigError(f"train.{name}={getattr(self, name):g} cannot work: it must be below 1, such as 0.9.")
        if self.layer_decay > 1:
            raise ConfigError(
                f"train.layer_decay={self.layer_decay:g} cannot work: a layer learns at most as fast as the one above "
                f"it; 0.7 to 0.95 are usual, 1 for the same rate everywhere."
            )
        if self.learning_rate is not None and self.learning_rate > 1:
            raise ConfigError(
                f"train.learning_rate={self.learning_rate:g} cannot work: AdamW changes every weight by about as much "
                f"in a step; 1e-5 to 1e-3 are usual."
            )
        if self.learning_rate is not None and self.learning_rate * self.weight_decay >= 1:
            raise ConfigError(
                f"train.weight_decay={self.weight_decay:g} cannot work with train.learning_rate="
                f"{self.learning_rate:g}: a step takes their product off every weight, as a share of it, so it must be "
                f"below 1; a decay of 0.01 to 0.1 is usual."
            )
        if self.dry_run and self.resume is not None:
            raise ConfigError(
                f"train.resume={self.resume} cannot work with train.dry_run=true, which tries a new run's settings: "
                f"leave one out."
            )
        if self.dropout not in (None, OWN_DROPOUT) and not _is_probability(self.dropout):
            raise ConfigError(
                f"train.dropout={self.dropout} cannot work: give a probability of at least 0 and below 1, such as 0.1, "
                f"or own for the model's own."
            )
        is_number = self.token_budget is not None and self.token_budget.isdecimal()
        if self.token_budget not in (None, "auto") and not (is_number and 0 < int(self.token_budget) <= LARGEST_INT):
            raise ConfigError(
                f"train.token_budget={self.token_budget} cannot work: give a number of tokens, such as 8192, auto for "
                f"as many as fit into memory, or null for whole batches."
            )

    @property
    def dropout_probability(self) -> float | None:
        """With what probability dropout sets a number to 0; None for the model's own, or if it is not decided yet."""
        return None if self.dropout in (None, OWN_DROPOUT) else float(self.dropout)

    @property
    def max_tokens_per_micro_batch(self) -> int | None:
        """Maximum tokens per micro-batch, None for no limit; with `auto`, defined only once it is decided."""
        return None if self.token_budget is None else int(self.token_budget)


def _is_probability(text: str) -> bool:
    """Return whether a text is a number of at least 0 and below 1."""
    try:
        return 0 <= float(text) < 1
    except ValueError:
        return False
