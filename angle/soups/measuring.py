"""Measuring soups as the runs that they are made of measured their own models: the same rows, metrics and precision."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from angle.config import ModelConfig
from angle.errors import DataError
from angle.evaluation.encoding import encode_distributed
from angle.evaluation.evaluator import Encode, EvaluationRows, with_embedding_cache
from angle.evaluation.predictions import Predictions, predict
from angle.evaluation.run_evaluators import DEFAULT_METRIC, TEST_METRIC, RunEvaluators, metric_named
from angle.export.example import make_example
from angle.modeling.encoder import Encoder
from angle.soups.ingredients import Ingredient
from angle.structures import Tokens
from angle.terminal import announce, clear_announcement
from angle.training.accelerator import start_accelerator
from angle.training.data import load_evaluated
from angle.training.kernels import run_kernels_to_skip
from angle.training.setup import evaluators_of

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Measured:
    """What was measured of a model."""

    values: dict[str, float]
    """Its validation metrics by name."""
    test: float | None
    """`TEST_METRIC` on the test rows; None without any."""
    predictions: Predictions | None
    """What it says of the validation rows; None without any."""
    example: dict[str, Any] | None
    """What it makes of the sentences that its card shows."""
    kernels: dict[str, str]
    layout: str


class SoupMeasurer:
    """Measures models as a run does, by its settings, on those of its rows that all ingredients have."""

    def __init__(self, run: Ingredient, *, validation: bool, test: bool) -> None:
        """Start the device; the rows are read with the first model, whose tokenizer they need.

        Args:
            run: one of the ingredients.
            validation: whether to measure on its validation rows.
            test: whether to measure on its test rows.

        """
        self.run = run
        self.accelerator = start_accelerator(run.config.train.mixed_precision)
        self._measured = {"valid": validation, "valid_sts": validation, "valid_retrieval": validation, "test": test}
        self._evaluators: RunEvaluators | None = None

    def validate(self, model: Path) -> dict[str, float]:
        """Return the validation metrics of a saved model, by name.

        Raises:
            ConfigError, DataError: the rows are no longer those that the run was measured on.

        """
        encoder = self._load(model)
        evaluators = self._evaluators_for(encoder)
        announce(f"measuring {model.name}")
        values = evaluators.validate(with_embedding_cache(self._encode_of(encoder)))
        clear_announcement()
        return values

    def measure(self, model: Path) -> Measured:
        """Return everything that is to be measured of a saved model.

        Raises:
            ConfigError, DataError: as `validate`.

        """
        encoder = self._load(model)
        encode = with_embedding_cache(self._encode_of(encoder))
        values: dict[str, float] = {}
        test, predictions = None, None
        if any(self._measured.values()):
            evaluators = self._evaluators_for(encoder)
            announce("measuring the soup")
            values = evaluators.validate(encode)
            test = evaluators.run_test(encode).get(TEST_METRIC.name)
            if evaluators.primary is not None:
                decode = partial(encoder.tokenizer.tokenizer.decode, skip_special_tokens=True)
                predictions = predict(evaluators.primary, encode, decode, step=0)
        in_full_precision = partial(encode_distributed, encoder.encode_tokens)
        example = make_example(encoder.tokenizer, in_full_precision, encoder.embedding_config)
        clear_announcement()
        shown = None if example is None else asdict(example)
        return Measured(values, test, predictions, shown, encoder.kernel_status(), str(encoder.layout))

    def _load(self, model: Path) -> Encoder:
        """Load a saved model as the run had it: adapters stay beside the weights, which may be quantised."""
        announce(f"loading {model.name}")
        settings, packing = self.run.config.model, self.run.config.train.packing
        config = ModelConfig(
            str(model),
            trust_remote_code=settings.trust_remote_code,
            dtype=settings.dtype,
            attn_implementation=settings.attn_implementation,
            kernels=settings.kernels,
        )
        encoder = Encoder.load(config, merge=False, kernel_selector=partial(run_kernels_to_skip, packing))
        encoder.to(self.accelerator.device)
        with self.accelerator.autocast():
            encoder.verify_packing()
        return encoder

    def _encode_of(self, encoder: Encoder) -> Encode:
        def encode(tokens: Tokens, depths: Any = None) -> Tensor:
            with self.accelerator.autocast():
                return encode_distributed(partial(encoder.encode_tokens, depths=depths), tokens)

        return encode

    def _evaluators_for(self, encoder: Encoder) -> RunEvaluators:
        if self._evaluators is None:
            config, record = self.run.config, self.run.record
            announce("reading the rows to measure on")
            needs_correlation = metric_named(config.train.best_metric) == DEFAULT_METRIC
            rows = load_evaluated(
                config.data, config.data_format.name, encoder.tokenizer, needs_correlation=needs_correlation
            )
            chosen = {purpose: found if self._measured[purpose] else None for purpose, found in rows.items()}
            self._check_unchanged(chosen)
            batch_size = config.train.batch_size * record["hardware"]["processes"]
            device = self.accelerator.device
            self._evaluators = evaluators_of(config, chosen, batch_size, encoder.dimensions, device)
        return self._evaluators

    def _check_unchanged(self, rows: dict[str, EvaluationRows | None]) -> None:
        """Raise DataError if rows are others than those that the run was measured on."""
        recorded = self.run.record["data"]
        for purpose, found in rows.items():
            if found is not None and found.fingerprint != recorded.get(purpose):
                raise DataError(
                    f"data.{purpose} of {self.run.name} has other rows now than when the run was measured, so its "
                    f"scores cannot be compared: put the old ones back."
                )
