"""How hidden states become an embedding."""

from __future__ import annotations

from dataclasses import dataclass

from angle.config.values import check_one_of
from angle.errors import ConfigError

#: The names of `angle.modeling.pooling.POOLINGS`.
POOLING_NAMES = ("cls", "avg", "mean", "max", "last", "cls_avg", "cls_max")


@dataclass
class PoolingConfig:
    """How the hidden states of a text's tokens become one embedding."""

    strategy: str = "auto"
    """auto, cls, avg (mean), max, last, cls_avg, cls_max, or the index of a token. auto: what the model itself
    specifies, otherwise cls for encoders and avg for decoders."""

    def __post_init__(self) -> None:
        self.strategy = str(self.strategy)
        if not self.strategy.lstrip("-").isdigit():
            check_one_of("pooling.strategy", self.strategy, ("auto", *POOLING_NAMES))
        elif self.strategy.startswith("-"):
            raise ConfigError(
                f"pooling.strategy={self.strategy} cannot work: count tokens from 0; "
                f"for the last token type pooling.strategy=last."
            )
