"""Settings and data that can work but are seldom intended: one line each, never an error."""

from __future__ import annotations

from collections.abc import Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from angle.config import LossConfig, ModelConfig, TrainConfig
from angle.data.batching import CorpusData
from angle.data.sources import SAMPLE
from angle.modeling.description import TINY

if TYPE_CHECKING:
    from angle.training.data import Data

#: An in-batch weight below this is seldom enough: the reference's own recipes use 10 to 35.
LOW_IBN_W = 10

_said: ContextVar[set[str] | None] = ContextVar("said", default=None)


def leave_out(said: set[str]) -> None:
    """From now on, omit notes given in earlier jobs of a sweep, and remember in `said` those that are given."""
    _said.set(said)


def notes_on(config: TrainConfig, data: Data, total_steps: int) -> list[str]:
    """Return the notes on a run of `total_steps` steps before it starts, once all settings are decided."""
    labels = data.train.corpus.labels if isinstance(data.train, CorpusData) else None
    notes = [*_on_weights(config.loss, config.data_format.name, labels), *_on_labels(config.loss, labels)]
    if config.data.train.names() == [SAMPLE] and config.model.name_or_path != TINY:
        notes.insert(0, "sample is toy data, to try things out; for a real model add data=nli_b")
    notes += [*_on_bits(config.model), *_on_precision(config), *_on_warmup(config.train.warmup_steps, total_steps)]
    said = _said.get()
    if said is None:
        return notes
    new = [note for note in notes if note not in said]
    said.update(new)
    return new


def _on_bits(model: ModelConfig) -> Iterator[str]:
    """Yield how 8-bit weights behave differently."""
    if model.load_kbit != 8:
        return
    yield (
        "model.load_kbit=8 rounds the inputs of a layer by all tokens of a batch, so batch mates change embeddings "
        "a little; model.load_kbit=4 does not"
    )
    if model.gradient_checkpointing:
        yield (
            "model.gradient_checkpointing=true saves little with model.load_kbit=8, whose layers keep their inputs; "
            "those of model.load_kbit=4 do not"
        )


def _on_precision(config: TrainConfig) -> Iterator[str]:
    """Yield the setting that would be faster on a GPU."""
    model, mixed = config.model, config.train.mixed_precision
    if not torch.cuda.is_available() or model.dtype != "float32":
        return
    if mixed == "no":
        yield "everything is computed in float32; train.mixed_precision=bf16 is what recent GPUs are fast in"
    elif config.lora.enabled:
        yield (
            f"the frozen weights are float32, and converted at every use for train.mixed_precision={mixed}; "
            f"model.dtype=bfloat16 saves that, and half of their memory"
        )


def _on_warmup(setting: float, total_steps: int) -> Iterator[str]:
    """Yield that the learning rate will not reach its peak."""
    if setting >= max(1, total_steps):
        yield (
            f"train.warmup_steps={setting:g} does not end within the run's {total_steps:,} "
            f"step{'s' if total_steps > 1 else ''}, so the learning rate never gets to what is set; "
            f"0.1 is a tenth of any run"
        )


def _on_weights(loss: LossConfig, name: str, labels: npt.NDArray[np.float32] | None) -> Iterator[str]:
    """Yield the advice of the reference's documentation where the weights deviate from it."""
    cosine_w, ibn_w, angle_w = loss.cosine_w or 0.0, loss.ibn_w or 0.0, loss.angle_w or 0.0
    if name == "C":
        idle = {"loss.cosine_w": cosine_w, "loss.angle_w": angle_w}
        without_effect = [f"{setting}={weight:g}" for setting, weight in idle.items() if weight]
        if without_effect:
            yield (
                f"{' and '.join(without_effect)} {'have' if len(without_effect) > 1 else 'has'} no effect on format C, "
                f"which has only the in-batch loss"
            )
        return
    if name == "B" and cosine_w:
        yield f"loss.cosine_w={cosine_w:g} ranks cosines of triples; the usual weight for format B is 0"
    graded = labels is not None and len(np.unique(labels)) > 2
    if ibn_w < LOW_IBN_W and not graded:
        yield f"loss.ibn_w={ibn_w:g} is low: for format {name} without graded labels, 10 to 35 is usual"


def _on_labels(loss: LossConfig, labels: npt.NDArray[np.float32] | None) -> Iterator[str]:
    """Yield what is unusual about the labels of the training rows."""
    if labels is None:
        return
    bound = loss.positive_above or 0.0
    positive = labels > bound
    if np.ptp(labels) == 0:
        yield f"every label is {labels[0]:g}, so there is nothing to rank"
    if loss.ibn_w and len(np.unique(labels[positive])) > 1 and bound <= labels.min():
        yield (
            f"labels above {bound:g} make a pair a positive of the in-batch loss, here {positive.mean():.0%} of the "
            f"rows; for graded labels set loss.positive_above, or loss.ibn_w=0"
        )
