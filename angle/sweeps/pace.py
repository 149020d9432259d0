"""How long runs take, and how long they may be within a budget of time."""

from __future__ import annotations

from dataclasses import dataclass

#: Steps of the first run, and the fewest of any that choose; of a second one, which is measured as these are.
FIRST_STEPS, SHORT_LOOK_STEPS = 20, 10
#: Of the time after the first run, the share in which settings are chosen; for how many runs that is meant, and for how
#: many it must be enough.
SHORT_SHARE, SHORT_RUNS, FEWEST_RUNS = 0.5, 16, 6
#: Settings that train in full length, and seeds of the best of them.
FINALISTS, NUM_SEEDS = 3, 3
#: The longest run, as a multiple of what it would be without the search; a short one is a quarter of it at most.
LONGEST = 3
#: Of the time that is left for the last runs, how much is planned with: no two take the same.
USABLE = 0.95


@dataclass(frozen=True)
class Pace:
    """How long runs take."""

    around: float
    """Seconds of a run beside its steps: loading, evaluations, saving."""
    step: float
    """Seconds of a step."""

    def seconds(self, steps: int) -> float:
        """Return what a run of so many steps takes."""
        return self.around + steps * self.step

    def steps(self, seconds: float) -> int:
        """Return how many steps a run has time for."""
        return int((seconds - self.around) / self.step)

    def short_steps(self, seconds: float, own_steps: int, at_once: int) -> int:
        """Return the length of the runs that choose the settings.

        Args:
            seconds: what is left after the first run.
            own_steps: the length of a run without the search.
            at_once: how many run at the same time.

        """
        share = at_once * SHORT_SHARE * seconds
        steps = self.steps(share / SHORT_RUNS)
        # Where most of a run is not its steps, fewer and longer runs tell more.
        steps = max(steps, min(self.steps(share * 2 / SHORT_RUNS), int(self.around / self.step)))
        return max(FIRST_STEPS, min(steps, LONGEST * own_steps // 4))

    def needed(self, at_once: int) -> float:
        """Return the seconds that must be left after the first run."""
        return FEWEST_RUNS * self.seconds(FIRST_STEPS) / SHORT_SHARE / at_once

    def full_steps(self, seconds: float, own_steps: int, at_once: int) -> tuple[int, bool]:
        """Return the length of the last runs, and whether there is time for one without the search, to compare with.

        They are as long as the time allows, and `LONGEST` times a run's own length at most.

        Args:
            seconds: what is left for them.
            own_steps: the length of a run without the search.
            at_once: how many run at the same time.

        """
        # Their soup evaluates a model for each of them, which takes about as long as one run beside its steps.
        seconds = seconds * USABLE - self.around
        rounds = -(-FINALISTS // at_once) + -(-(NUM_SEEDS - 1) // at_once)
        alone = self.steps(seconds / rounds)
        beside = self.steps((seconds - self.seconds(own_steps) / at_once) / rounds)
        compares = beside >= own_steps
        return max(FIRST_STEPS, min(beside if compares else alone, LONGEST * own_steps)), compares
