"""Where metrics are logged."""

from __future__ import annotations

from dataclasses import dataclass, field

from angle.config.values import check_one_of


@dataclass
class TrackingConfig:
    """Weights & Biases. The environment variable WANDB_MODE overrides `mode`."""

    mode: str = "disabled"
    """disabled, online or offline."""
    project: str = "angle"
    """Project that the run is listed under."""
    entity: str | None = None
    """User or team; null: your own."""
    name: str | None = None
    """Name of the run; null: the run folder's."""
    tags: list[str] = field(default_factory=list)
    """Labels to find the run by."""

    def __post_init__(self) -> None:
        check_one_of("tracking.mode", self.mode, ("disabled", "online", "offline"))
