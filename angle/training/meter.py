"""The means of training metrics between two reports: losses, throughput and padding."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from angle.data.training_data import TrainingData
from angle.errors import TrainingError
from angle.modeling.encoder import Encoder
from angle.objective.combined import LossOutput
from angle.structures import Batch
from angle.tracking.tracker import Tracker
from angle.training.checkpoint import Progress
from angle.training.memory import used_memory
from angle.training.sharding import full_tensor

#: Steps in a row that may overflow in fp16. The loss is scaled by half as much after each, from 2^16 on: after so many,
#: by less than 2^-16.
MAX_OVERFLOWS = 33
#: What stands before the name of a source in the name of the mean loss of its batches.
SOURCE = "source/"


class Meter:
    """Accumulates the steps since the last report, without waiting for the device at each one."""

    def __init__(
        self, encoder: Encoder, data: TrainingData, tracker: Tracker, progress: Progress, recovery: Callable[[], str]
    ) -> None:
        """Start the clock.

        Args:
            encoder: the encoder that is trained.
            data: what it is trained on.
            tracker: takes the reports.
            progress: read at each batch and added to at each report.
            recovery: returns what is left of the run if it fails, as a sentence.

        """
        self._encoder, self._data, self._tracker, self._progress = encoder, data, tracker, progress
        self._recovery = recovery
        unreported = progress.unreported
        self._values: list[dict[str, float]] = unreported.get("values", [])
        self._losses: list[dict[str, Tensor]] = []
        self._steps: list[int] = unreported.get("steps", [])
        self._unfetched_norms: list[tuple[int, Tensor]] = []
        self._norms: list[float] = unreported.get("norms", [])
        self._overflows_in_row = 0
        self._texts: int = unreported.get("texts", 0)
        self._padding_fractions: list[float] = unreported.get("padding_fractions", [])
        self._seconds: float = unreported.get("seconds", 0.0)
        self._is_first_report = progress.step == 0
        self._start_time = time.perf_counter()

    def add(self, batch: Batch, loss: LossOutput) -> None:
        """Count a batch."""
        source = self._data.loss_names[batch.structure.loss : batch.structure.loss + 1]
        by_source = {f"{SOURCE}{name}": loss.total for name in source}
        self._losses.append({"loss": loss.total} | loss.terms | by_source)
        self._steps.append(self._progress.step)
        self._texts += batch.structure.num_texts
        self._padding_fractions.append(self._encoder.padding_fraction(batch.tokens.lengths))

    def add_step(self, grad_norm: Tensor, *, overflowed: bool) -> None:
        """Count an optimiser step.

        Args:
            grad_norm: the norm of its gradient (scalar).
            overflowed: whether the gradient was too large for fp16, so that the step was left out.

        Raises:
            TrainingError: too many steps in a row were left out.

        """
        if not overflowed:
            self._unfetched_norms.append((self._progress.step, grad_norm))
            self._overflows_in_row = 0
            return
        self._progress.overflows += 1
        self._overflows_in_row += 1
        if self._overflows_in_row == MAX_OVERFLOWS:
            raise TrainingError(
                f"The gradients of {MAX_OVERFLOWS} steps in a row, up to step {self._progress.step + 1}, overflowed in "
                f"fp16, so nothing is learned any more (rows of the last: {self._data.describe(self._progress.step)}). "
                f"{self._recovery()} Start a new run with train.mixed_precision=bf16, or a lower train.learning_rate."
            )

    def report(self, lr: float) -> None:
        """Record and show the means since the last report, if there were steps.

        Raises:
            TrainingError: a loss among them, or a gradient, is not finite.

        """
        progress = self._progress
        if not self._steps:
            return
        self.pause()
        names = dict.fromkeys(name for row in self._values for name in row)
        means = {name: float(np.mean([row[name] for row in self._values if name in row])) for name in names}
        progress.texts += self._texts
        progress.seconds += self._seconds
        steps_per_epoch = self._data.steps_per_epoch
        metrics = {
            "loss": means.pop("loss"),
            **{f"loss/{name}": value for name, value in means.items()},
            "learning_rate": lr,
            **({"gradient_norm": float(np.mean(self._norms))} if self._norms else {}),
            "texts_per_second": self._texts / self._seconds,
            "padding_share": float(np.mean(self._padding_fractions)),
            "memory_gib": used_memory(self._encoder.device) / 2**30,
            "texts": progress.texts,
            **({"epoch": progress.step / steps_per_epoch} if steps_per_epoch else {}),
            **({"overflows": progress.overflows} if progress.overflows else {}),
        }
        self._tracker.log_metrics(progress.step, metrics, show=True)
        self._values, self._steps, self._texts, self._padding_fractions, self._seconds = [], [], 0, [], 0.0
        self._norms = []

    def unreported(self) -> dict[str, Any]:
        """Return what a checkpoint between two reports must hold, so that the next report is as it would have been.

        Raises:
            TrainingError: a loss among them is not finite, so the weights are not worth saving.

        """
        if not self._steps:
            return {}
        self.pause()
        return {
            "values": self._values,
            "steps": self._steps,
            "norms": self._norms,
            "texts": self._texts,
            "padding_fractions": self._padding_fractions,
            "seconds": self._seconds,
        }

    def restart_clock(self) -> None:
        """Leave out the time since `pause`, which went into something else."""
        self._start_time = time.perf_counter()

    def pause(self) -> None:
        """Wait for the losses that are still on the device, and count the time until then.

        Raises:
            TrainingError: a loss among them, or a gradient, is not finite.

        """
        if self._losses:
            numbers = iter(torch.stack([value for loss in self._losses for value in loss.values()]).tolist())
            self._values += [{name: next(numbers) for name in loss} for loss in self._losses]
            self._losses = []
        self._check_losses(self._values)
        if self._unfetched_norms:
            steps, norms = zip(*self._unfetched_norms, strict=True)
            values = torch.stack([full_tensor(norm) for norm in norms]).tolist()
            self._check_norms(steps, values)
            self._norms += values
            self._unfetched_norms = []
        self._seconds += max(time.perf_counter() - self._start_time, 1e-9)
        self.restart_clock()

    def _check_losses(self, values: list[dict[str, float]]) -> None:
        """Raise at the first non-finite loss, since the weights are worthless after it; warn if all losses are 0."""
        bad = next((index for index, row in enumerate(values) if not np.isfinite(list(row.values())).all()), None)
        if bad is not None:
            terms = ", ".join(f"{name} {value:g}" for name, value in values[bad].items() if name != "loss")
            self._stop(self._steps[bad], f"The loss of step {self._steps[bad] + 1} is {values[bad]['loss']} ({terms})")
        if self._is_first_report and not any(row["loss"] for row in values):
            self._tracker.warning(
                "the loss is exactly 0 from the first step on, so nothing is learned: no row has another text to be "
                "compared with, or no label is higher than another."
            )
        self._is_first_report = False

    def _check_norms(self, steps: Sequence[int], norms: Sequence[float]) -> None:
        """Raise at the first gradient that is not finite although its loss is: it has made the weights so."""
        for step, norm in zip(steps, norms, strict=True):
            if not np.isfinite(norm):
                self._stop(step, f"The gradient of step {step + 1} is {norm}, though its loss is finite")

    def _stop(self, step: int, problem: str) -> NoReturn:
        raise TrainingError(
            f"{problem}; rows: {self._data.describe(step)}. {self._recovery()} Going on from it would end the same "
            f"way: look at those rows, and start a new run with a lower train.learning_rate or train.max_grad_norm."
        )
