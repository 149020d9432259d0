"""A run as the stages of the loop share it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from angle.config import TrainConfig
from angle.evaluation.encoding import encode_distributed
from angle.evaluation.evaluator import Encode
from angle.evaluation.pairs import Pairs
from angle.evaluation.predictions import predict
from angle.evaluation.run_evaluators import RunEvaluators
from angle.files import relative_to_cwd
from angle.modeling.encoder import Encoder
from angle.modeling.trainable import TrainableEncoder
from angle.structures import Tokens
from angle.tracking.tracker import Tracker
from angle.training.average import WeightAverage
from angle.training.checkpoint import Progress
from angle.training.data import RunData
from angle.training.distributed import check_finite_weights
from angle.training.gradient_cache import GradientCache
from angle.training.run_folder import RunFolder
from angle.training.sharding import full_adapter_weights

if TYPE_CHECKING:
    from accelerate import Accelerator


#: Asked after an evaluation whether a run is worth going on with. It is told how much of the run is done, from 0 to 1,
#: and its score, higher being better.
Pruner = Callable[[float, float], bool]


@dataclass
class Run:
    """Everything that a run works with, and how far it is."""

    config: TrainConfig
    accelerator: Accelerator
    folder: RunFolder
    tracker: Tracker
    data: RunData
    trainable: TrainableEncoder
    gradient_cache: GradientCache
    optimizer: Any
    evaluators: RunEvaluators
    average: WeightAverage
    """What is evaluated and saved in place of the weights, as train.average says."""
    total_steps: int
    pruner: Pruner | None = None
    """None: the run is not one of a search."""
    progress: Progress = field(default_factory=Progress)

    @property
    def encoder(self) -> Encoder:
        """The encoder that is trained."""
        return self.trainable.encoder

    def recovery(self) -> str:
        """Return what is left of the run if it fails now."""
        checkpoint = next(iter(self.folder.checkpoints()), None)
        if checkpoint is None:
            return "There is no checkpoint before it."
        return f"The last good checkpoint is {relative_to_cwd(checkpoint)}."

    def encode(self, tokens: Tokens, depths: Sequence[int] | None = None) -> Tensor:
        """Return embeddings for an evaluator, computed across all processes in the precision of training."""
        with self.accelerator.autocast():
            return encode_distributed(partial(self.trainable.encode_tokens, depths=depths), tokens, self.accelerator)

    def save_predictions(self, name: str, encode: Encode) -> None:
        """Save what the current model says of the validation rows; every process has encoded them already."""
        evaluator = self.evaluators.primary
        if evaluator is not None and self.accelerator.is_main_process:
            with self.folder.writing():
                decode = partial(self.encoder.tokenizer.tokenizer.decode, skip_special_tokens=True)
                predictions = predict(evaluator, encode, decode, self.progress.step)
                predictions.save(self.folder.path, name)
            pairs = Pairs.of(predictions)
            cosines = {f"similarity/{group}": pairs.cosines[pairs.of_group(group)] for group in pairs.group_names}
            self.tracker.log_histograms(self.progress.step, cosines)

    def save(self, name: str, **notes: Any) -> None:
        """Save the current model in the run folder, under the given name, with notes for the folder's manifest."""
        check_finite_weights(self.trainable, self.progress.step, self.recovery())
        adapters = full_adapter_weights(self.encoder, self.accelerator)
        if self.accelerator.is_main_process:
            self.folder.replace(name, lambda temp_folder: self.encoder.save(temp_folder, adapters), **notes)
