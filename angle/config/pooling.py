"""How hidden states become an embedding."""

from __future__ import annotations

from dataclasses import dataclass

from angle.config.values import check_fields, declared
from angle.errors import ConfigError

#: The names of `angle.modeling.pooling.POOLINGS`.
POOLING_NAMES = ("cls", "avg", "mean", "max", "last", "cls_avg", "cls_max")


@dataclass
class PoolingConfig:
    """How the hidden states of a text's tokens become one embedding."""

    strategy: str = declared("auto", choices=("auto", *POOLING_NAMES), or_index=True)
    """auto, cls, avg (mean), max, last, cls_avg, cls_max, or the index of a token. auto: what the model itself
    specifies, otherwise cls for encoders and avg for decoders."""

    def __post_init__(self) -> None:
        self.strategy = str(self.strategy)
        if self.strategy.startswith("-") and self.strategy[1:].isdigit():
            raise ConfigError(
                f"pooling.strategy={self.strategy} cannot work: count tokens from 0; "
                f"for the last token type pooling.strategy=last."
            )
        check_fields("pooling", self)
