"""A search for settings."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from angle.config.values import check_fields, declared, refuse_fields_while_off
from angle.errors import ConfigError

#: Seconds of the units that a time is written in, the largest first, as they follow each other in 1h30m.
UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
DURATION = re.compile("".join(rf"(?:(\d+){unit})?" for unit in UNITS))


@dataclass
class HparamsConfig:
    """A sweep (-m) whose values are chosen by what its earlier jobs have scored."""

    enabled: bool = False
    """Whether Optuna chooses the values, in place of running every combination."""
    space: dict[str, str] = field(default_factory=dict)
    """What to choose from, by setting, as on a command line: {loss.ibn_w: "interval(1,50)"}; words of the command line
    replace or add to it."""
    budget: str | None = None
    """Time for all of it, such as 30m or 2h: short jobs choose the settings, the best of them train longer, and the
    best of those with more seeds; null: jobs as they are, hparams.trials of them."""
    trials: int | None = declared(None, at_least=1)
    """Jobs that choose, with those that an earlier command has run in the same hydra.sweep.dir; null: 20, or as many as
    a budget has time for."""
    parallel: int | None = declared(None, at_least=1)
    """Jobs that are chosen, and run, together; null: 1, or 4 with a launcher that runs several at once."""
    prune: bool = True
    """Stop a job whose best score so far is below the median of the others' at the same point of training."""
    seed: int = declared(42, at_least=0)
    """Seed of the choices."""

    def __post_init__(self) -> None:
        refuse_fields_while_off("hparams", self, "hparams=optuna")
        check_fields("hparams", self)
        if self.budget is not None and not self.budget_seconds:
            raise ConfigError(f"hparams.budget={self.budget} is no time: give one such as 30m, 2h or 1h30m.")

    @property
    def budget_seconds(self) -> int | None:
        """The budget in seconds, None without one; 0 if it cannot be read."""
        if self.budget is None:
            return None
        found = DURATION.fullmatch(self.budget)
        amounts = found.groups("0") if found else ()
        return sum(int(amount) * seconds for amount, seconds in zip(amounts, UNITS.values(), strict=False))
