"""Where metrics are recorded, beside the console and metrics.jsonl."""

from __future__ import annotations

from dataclasses import dataclass, field

from angle.config.values import check_fields, declared
from angle.errors import ConfigError

TRACKING_MODES = ("disabled", "online", "offline")
#: What Weights & Biases refuses in the name of a project.
NOT_IN_PROJECT, MAX_PROJECT_LENGTH = "/\\#?%:", 128


@dataclass
class TrackingConfig:
    """Weights & Biases, TensorBoard and MLflow. The environment variable WANDB_MODE overrides `mode`."""

    mode: str = declared("disabled", choices=TRACKING_MODES)
    """Weights & Biases: disabled, online or offline."""
    project: str = "angle"
    """Project of Weights & Biases, or experiment of MLflow, that the run is listed under."""
    entity: str | None = None
    """User or team of Weights & Biases; null: your own."""
    name: str | None = None
    """Name of the run; null: the run folder's."""
    group: str | None = None
    """Runs that Weights & Biases shows together; null: those of a sweep, by its folder."""
    tags: list[str] = field(default_factory=list)
    """Labels to find the run by."""
    model: bool = False
    """Keep the model as an artifact of Weights & Biases or MLflow; sending it can take up to an hour more."""
    tensorboard: bool = False
    """Write TensorBoard's event files into the run folder."""
    mlflow: bool = False
    """Record the run in MLflow: where MLFLOW_TRACKING_URI says, else in mlflow.db of the current folder."""
    timeout: float = declared(20.0, above=0)
    """Seconds to wait for Weights & Biases, at the start and at the end, or for MLflow; a run goes on without them."""

    def __post_init__(self) -> None:
        check_fields("tracking", self)
        wrong = sorted(set(self.project) & set(NOT_IN_PROJECT))
        if wrong or not 0 < len(self.project) <= MAX_PROJECT_LENGTH:
            raise ConfigError(
                f"tracking.project={self.project[:MAX_PROJECT_LENGTH]} cannot work: Weights & Biases takes 1 to "
                f"{MAX_PROJECT_LENGTH} characters, and none of {' '.join(NOT_IN_PROJECT)}; a user or team goes into "
                f"tracking.entity."
            )

    @property
    def sinks(self) -> list[str]:
        """The modules of angle.tracking that record the run beside the console and metrics.jsonl."""
        enabled = {"wandb": self.mode != "disabled", "tensorboard": self.tensorboard, "mlflow": self.mlflow}
        return [name for name, is_on in enabled.items() if is_on]
