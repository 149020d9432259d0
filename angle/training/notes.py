"""Notes on settings and data that can work but are rarely intended: one line each, never an error."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from angle.config import (
    IN_BATCH,
    LOSS_TERM_SPECS,
    REVERSE,
    SAMPLE,
    LossConfig,
    ModelConfig,
    TrainConfig,
    TrainingConfig,
    enumerate_words,
)
from angle.data.language import note_on_unknown
from angle.modeling.locations import TINY

if TYPE_CHECKING:
    from angle.training.data import RunData

#: An in-batch weight below this is rarely enough: angle_emb's own recipes use 10 to 35.
LOW_IBN_W = 10
#: Rows below which a correlation or an accuracy has a standard error of about 0.2.
FEW_ROWS = 20


def notes_on(config: TrainConfig, data: RunData, total_steps: int) -> list[str]:
    """Return the notes on a run of `total_steps` steps before it starts, once all settings are decided."""
    notes = []
    for loss in config.losses:
        labels = data.labels(loss.source)
        notes_on_loss = (*_on_weights(loss.config, loss.format, labels), *_on_labels(loss.config, labels))
        notes += [f"{f'{loss.source}: ' if loss.source else ''}{note}" for note in notes_on_loss]
    if config.data.train.names() == [SAMPLE] and config.model.name_or_path != TINY:
        notes.insert(0, "sample is toy data, to try things out; for a real model add data=nli_b")
    if config.data.train.names() != [SAMPLE] and config.model.name_or_path == TINY:
        notes.insert(0, "model=tiny is small and untrained, to try things out; for a real model add model=minilm")
    return [
        *notes,
        *_on_unknown_tokens(data),
        *_on_bits(config.model),
        *_on_precision(config.model, config.train.mixed_precision, lora=config.lora.enabled),
        *_on_warmup(config.train.warmup_steps, total_steps),
        *_on_patience(config.train, data.train.steps_per_epoch, total_steps),
        *_on_few_rows(data),
        *_on_left_out(data),
    ]


def _on_unknown_tokens(data: RunData) -> Iterator[str]:
    """Yield which texts are partly unknown to the tokenizer."""
    for purpose, corpus in data.corpora.items():
        note = note_on_unknown(corpus.unknown, f"data.{purpose}")
        if note is not None:
            yield note


def _on_bits(model: ModelConfig) -> Iterator[str]:
    """Yield in what 8-bit weights differ from 4-bit ones."""
    if model.load_kbit != 8:
        return
    yield (
        "model.load_kbit=8 rounds a layer's inputs over all tokens of a batch, so the other texts of its batch change "
        "an embedding slightly; model.load_kbit=4 does not"
    )
    if model.gradient_checkpointing:
        yield (
            "model.gradient_checkpointing=true saves little with model.load_kbit=8, whose layers keep their inputs; "
            "those of model.load_kbit=4 do not"
        )


def _on_precision(model: ModelConfig, mixed_precision: str, *, lora: bool) -> Iterator[str]:
    """Yield the setting that would be faster on a GPU."""
    if not torch.cuda.is_available() or model.dtype != "float32":
        return
    if mixed_precision == "no":
        yield "everything is computed in float32; train.mixed_precision=bf16 is what recent GPUs are fast in"
    elif lora:
        yield (
            f"the frozen weights are float32, and converted at every use for train.mixed_precision={mixed_precision}; "
            f"model.dtype=bfloat16 saves that, and half of their memory"
        )


def _on_warmup(warmup_steps: float, total_steps: int) -> Iterator[str]:
    """Yield that the learning rate will not reach its peak."""
    if warmup_steps >= max(1, total_steps):
        yield (
            f"train.warmup_steps={warmup_steps:g} does not end within the run's {total_steps:,} "
            f"step{'s' if total_steps > 1 else ''}, so the learning rate never gets to what is set; "
            f"0.1 is a tenth of any run"
        )


def _on_few_rows(data: RunData) -> Iterator[str]:
    """Yield which validation sets are so small that their scores are mostly chance."""
    for purpose, rows in data.evaluated.items():
        if rows is not None and len(rows) < FEW_ROWS and not (purpose == "valid_sts" and rows is data.valid):
            unit = "queries" if rows is data.valid_retrieval else "rows"
            yield f"data.{purpose} has {len(rows)} {unit}, so few that its scores are mostly chance"


def _on_left_out(data: RunData) -> Iterator[str]:
    """Yield what of queries and passages is not measured."""
    note = None if data.valid_retrieval is None else data.valid_retrieval.note("data.valid_retrieval")
    if note is not None:
        yield note


def _on_patience(train: TrainingConfig, steps_per_epoch: int | None, total_steps: int) -> Iterator[str]:
    """Yield that a run has too few evaluations to stop early."""
    interval = steps_per_epoch if train.eval_steps is None else train.eval_steps
    evaluations = -(-total_steps // interval) if interval else 1
    if train.patience is not None and evaluations <= train.patience:
        yield (
            f"train.patience={train.patience} cannot stop this run early, which is evaluated {evaluations} "
            f"time{'s' if evaluations != 1 else ''}; train.eval_steps={max(1, total_steps // 20)} evaluates more often"
        )


def _on_weights(loss: LossConfig, data_format: str, labels: npt.NDArray[np.float32] | None) -> Iterator[str]:
    """Yield the advice of angle_emb's documentation where the weights deviate from it."""
    inapplicable = [term for term in LOSS_TERM_SPECS if data_format not in term.formats and loss.weight(term)]
    if inapplicable:
        settings = [f"loss.{term.weight}={loss.weight(term):g}" for term in inapplicable]
        titles = [term.title for term in LOSS_TERM_SPECS if data_format in term.formats]
        yield (
            f"{enumerate_words(settings)} {'have' if len(settings) > 1 else 'has'} no effect on format {data_format}, "
            f"which has only the {enumerate_words(titles)} loss{'es' if len(titles) > 1 else ''}"
        )
    if data_format == "C":  # has no other terms to be outweighed by
        return
    if data_format == "B" and loss.cosine_w:
        yield f"loss.cosine_w={loss.cosine_w:g} ranks cosines of triples; the usual weight for format B is 0"
    graded = labels is not None and len(np.unique(labels)) > 2
    in_batch = [weight for term, weight in loss.active_terms(data_format) if term in (IN_BATCH, REVERSE)]
    if sum(in_batch) < LOW_IBN_W and not graded:
        ibn_w = loss.ibn_w or 0.0
        yield f"loss.ibn_w={ibn_w:g} is low: for format {data_format} without graded labels, 10 to 35 is usual"


def _on_labels(loss: LossConfig, labels: npt.NDArray[np.float32] | None) -> Iterator[str]:
    """Yield what is unusual about the labels of the training rows."""
    if labels is None:
        return
    threshold = loss.positive_above or 0.0
    positive = labels > threshold
    if np.ptp(labels) == 0:
        yield f"every label is {labels[0]:g}, so there is nothing to rank"
    if loss.ibn_w and not positive.any():
        yield (
            f"no label is above loss.positive_above={threshold:g}, so the in-batch loss has no positives and is 0: set "
            f"loss.positive_above below {labels.max():g}, or loss.ibn_w=0"
        )
    if loss.ibn_w and len(np.unique(labels[positive])) > 1 and threshold <= labels.min():
        yield (
            f"labels above {threshold:g} make a pair a positive of the in-batch loss, here {positive.mean():.0%} of "
            f"the rows; for graded labels set loss.positive_above, or loss.ibn_w=0"
        )
