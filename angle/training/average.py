"""An average of the weights of many steps, which is evaluated and saved in place of the last weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from angle.config import TrainingConfig
from angle.modeling.buffers import persistent_buffers
from angle.training.schedule import number_of_steps
from angle.training.sharding import local_tensor, shard_like

#: Steps of a window whose weights are included, at least; more say nothing new, and each reads all weights.
SAMPLES = 10


class WeightAverage:
    """The mean of a model's trained weights over its steps, beside them and in their precision.

    `ema`, with a window of S steps, is the exponential mean with the decay d = 1 - 1/S, corrected for its beginning as
    Adam's moments are (Kingma and Ba 2015, section 3): after step t, (1 - d) / (1 - d^t) * sum_i d^(t-i) w_i.
    `last` is the plain mean of the last S steps (Izmailov et al. 2018): before these, there is no mean, and the model
    is what it is. Both are average += (w_t - average) * c_t, with c_t the newest weights' coefficient, 1 for the first.
    In a long window, only every k-th step counts, k = S // SAMPLES, the run's last one among them: d is then d^k.

    Buffers that are saved with a model and hold fractions are averaged too: they may be statistics of forward passes.
    """

    def __init__(self, model: nn.Module, kind: str, window: int = 1, first_step: int = 1, last_step: int = 1) -> None:
        """Allocate nothing yet.

        Args:
            model: the model; its weights may be sharded.
            kind: none, ema or last.
            window: S.
            first_step: the first step whose weights may be included, counted from 1.
            last_step: the run's last.

        """
        self.model, self.kind, self.window, self.first_step, self.last_step = model, kind, window, first_step, last_step
        self.interval = max(1, window // SAMPLES)
        #: Steps whose weights are included.
        self.count = 0
        #: The averages, by the names of what they are of; nothing before the first step.
        self.tensors: dict[str, Tensor] = {}
        self._parameters = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self._has_buffers = bool(_fractional_buffers(model))

    @classmethod
    def of(cls, model: nn.Module, config: TrainingConfig, total_steps: int) -> WeightAverage:
        """Return the one that the settings, with everything decided, ask for in a run of `total_steps` steps."""
        window = max(1, number_of_steps(config.average_window or 1, total_steps))
        first_step = max(1, total_steps - window + 1) if config.average == "last" else 1
        return cls(model, config.average, window, first_step, total_steps)

    def update(self, step: int) -> int:
        """Include the weights of a step, if they count; return the number of steps that are included."""
        if self.kind == "none" or step < self.first_step or (self.last_step - step) % self.interval:
            return self.count
        self.count += 1
        current = self._current()
        if not self.tensors:
            self.tensors = {name: tensor.clone() for name, tensor in current.items()}
        else:
            averages, newest = (list(map(local_tensor, each.values())) for each in (self.tensors, current))
            get_ema_multi_avg_fn(decay=1 - self._coefficient())(averages, newest, self.count)  # type: ignore[no-untyped-call]
        return self.count

    def _coefficient(self) -> float:
        """Return the coefficient of the newest weights."""
        if self.kind == "last":
            return 1 / self.count
        if self.window == 1:
            return 1.0
        log_decay = self.interval * math.log1p(-1 / self.window)
        return math.expm1(log_decay) / math.expm1(self.count * log_decay)

    def _current(self) -> dict[str, Tensor]:
        """Return what is averaged, as it is now."""
        weights = {name: parameter.detach() for name, parameter in self._parameters.items()}
        return weights | _fractional_buffers(self.model) if self._has_buffers else weights

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Meanwhile, the model has the average for weights, if there is one yet."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, tensor in self._current().items() if self.tensors else ():
            weights = tensor.clone()
            tensor.copy_(self.tensors[name])
            self.tensors[name].copy_(weights)

    def load(self, tensors: Mapping[str, Tensor], count: int) -> None:
        """Restore an average of `count` steps from full tensors, which every process has."""
        current = self._current()
        assert current.keys() == tensors.keys()
        self.tensors = {name: shard_like(tensors[name].to(tensor.device), tensor) for name, tensor in current.items()}
        self.count = count


def _fractional_buffers(model: nn.Module) -> dict[str, Tensor]:
    return {name: buffer for name, buffer in persistent_buffers(model).items() if buffer.is_floating_point()}
