"""A search for settings."""

from __future__ import annotations

from dataclasses import dataclass, field

from angle.config.values import check_fields, declared, refuse_fields_while_off


@dataclass
class HparamsConfig:
    """A sweep (-m) whose values are chosen by what its earlier jobs have scored."""

    enabled: bool = False
    """Whether Optuna chooses the values, in place of running every combination."""
    space: dict[str, str] = field(default_factory=dict)
    """What to choose from, by setting, as on a command line: {loss.ibn_w: "interval(1,50)"}; words of the command line
    replace or add to it."""
    trials: int = declared(20, at_least=1)
    """Jobs in all, with those that an earlier command has run in the same hydra.sweep.dir."""
    parallel: int | None = declared(None, at_least=1)
    """Jobs that are chosen, and run, together; null: 1, or 4 with a launcher that runs several at once."""
    prune: bool = True
    """Stop a job whose best score so far is below the median of the others' at the same point of training."""
    seed: int = declared(42, at_least=0)
    """Seed of the choices."""

    def __post_init__(self) -> None:
        refuse_fields_while_off("hparams", self, "hparams=optuna")
        check_fields("hparams", self)
