"""Training from Python: the loop, and the last lines of its run, which say whether training has helped."""

from __future__ import annotations

from angle.config import TrainConfig
from angle.training import loop
from angle.training.result import Result
from angle.training.summary import print_summary


def fit(config: TrainConfig) -> Result:
    """Train the encoder that `config` describes, in its run folder, print how it went, and return the result.

    An unfinished run with the same settings is resumed. A finished one is only reported, and pushed if that is
    requested and not done yet. A failed push does not raise: the result reports it.

    Raises:
        ConfigError, DataError: anything wrong with the settings or the data, before any training.
        TrainingError: a loss or a gradient that is not finite.
        KeyboardInterrupt: a signal has ended the run, which can go on.

    """
    result = loop.fit(config)
    print_summary(result)
    return result
