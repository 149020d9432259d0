"""The objective: weights and multipliers of its terms."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from angle.config.values import check_at_least
from angle.errors import ConfigError

#: What `null` loss weights mean, by data format: (cosine_w, ibn_w, angle_w).
FORMAT_WEIGHTS = {"A": (1.0, 20.0, 1.0), "B": (0.0, 20.0, 1.0), "C": (0.0, 20.0, 0.0)}


@dataclass
class LossConfig:
    """The objective: cosine_w * cosine + ibn_w * in-batch + angle_w * angle. A null weight takes the format's own."""

    cosine_w: float | None = None
    """Weight of the cosine ranking loss (formats A and B)."""
    ibn_w: float | None = None
    """Weight of the in-batch contrastive loss (all formats)."""
    angle_w: float | None = None
    """Weight of the angle ranking loss (formats A and B)."""
    cosine_tau: float = 20.0
    """Multiplier of the cosine similarities: an inverse temperature."""
    ibn_tau: float = 20.0
    """Multiplier of the in-batch similarities: an inverse temperature."""
    angle_tau: float = 20.0
    """Multiplier of the angle similarities: an inverse temperature."""
    positive_above: float | None = None
    """A row of format A is a positive of the in-batch loss iff its label is above this; null: 0 (sample data: 4)."""

    def __post_init__(self) -> None:
        for name in ("cosine_w", "ibn_w", "angle_w"):
            check_at_least(f"loss.{name}", getattr(self, name), 0)
        for name in ("cosine_tau", "ibn_tau", "angle_tau"):
            check_at_least(f"loss.{name}", getattr(self, name), 0, above=True)
        if self.cosine_w == self.ibn_w == self.angle_w == 0:
            raise ConfigError(
                "loss.cosine_w, loss.ibn_w and loss.angle_w are all 0, so there is nothing to learn: "
                "set one of them above 0."
            )

    def for_format(self, name: str) -> LossConfig:
        """Return a copy whose null weights are those of the data format `name`."""
        own = dict(zip(("cosine_w", "ibn_w", "angle_w"), FORMAT_WEIGHTS[name], strict=True))
        weights = {key: value if getattr(self, key) is None else getattr(self, key) for key, value in own.items()}
        if name == "C" and not weights["ibn_w"]:
            raise ConfigError(
                "loss.ibn_w=0 leaves nothing to learn: format C (text, positive) has only the in-batch "
                "loss; set loss.ibn_w above 0."
            )
        return dataclasses.replace(self, **weights)
