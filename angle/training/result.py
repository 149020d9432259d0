"""What came out of a run, as numbers and as the last words on the console."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from angle.settings import override_words
from angle.training.run_folder import RunFolder
from angle.training.tracking import relative_to_here

SWEEP_FLAGS = frozenset({"-m", "--multirun"})
#: Words of a command line that its sweep has not.
UNSWEPT = (
    "-", "hub.", "hydra.", "train.output_dir=", "train.resume=", "loss.ibn_w=", "loss.angle_tau=", "loss.ibn_tau=",
)  # fmt: skip
#: What is worth a sweep; with the in-batch loss alone, its weight is only a factor of all.
SWEPT, SWEPT_OF_FORMAT_C = ("loss.ibn_w=10,20,30", "loss.angle_tau=1,20"), ("loss.ibn_tau=10,20,50",)


@dataclass(frozen=True)
class Result:
    """What came out of a run."""

    folder: Path
    finished_before: bool = False
    """The run was found finished; nothing was done."""
    best_score: float | None = None
    """Highest Spearman correlation on data.valid_sts, None when there was none."""
    best_step: int | None = None
    """When that was."""
    test_before: float | None = None
    """Spearman correlation on data.test before training."""
    test_after: float | None = None
    """The same after training, of the best model if there is one, else of the final one."""
    test_word_overlap: float | None = None
    """The same of a score that only counts shared words."""
    pushed: str | None = None
    """Where the model is on the hub."""
    pushed_before: bool = False
    """It was there already; nothing was pushed."""
    push_problem: str | None = None
    """What kept it from getting there, and how to try again."""

    def summary(self, words: Sequence[str] = ()) -> str:
        """Return what a person wants to know after a run: the score, where the model is, what to type next.

        Args:
            words: the command line's, for a sweep of the same run; what comes after a sweep is for its best job alone.

        """
        run = relative_to_here(self.folder)
        lines = [f"{run} holds this run already, finished."] if self.finished_before else []
        if self.test_before is not None and self.test_after is not None:
            lines += [
                f"Test    Spearman {self.test_before:.4f} before training, {self.test_after:.4f} after "
                f"(shared words alone: {self.test_word_overlap:.4f})"
            ]
        if self.best_score is not None:
            lines += [f"Best    Spearman {self.best_score:.4f} on validation, at step {self.best_step}"]
        lines += [f"Saved   {run}/{'best' if self.best_step is not None else 'final'}"]
        if self.pushed is not None:
            lines += [f"Pushed  {self.pushed}{' (by this run before)' if self.pushed_before else ''}"]
        if not SWEEP_FLAGS.isdisjoint(words):
            return "\n".join(lines)
        following = [
            f"python evaluate.py model.name_or_path={run}{'' if self.test_after else ' tasks=[stsb]'}",
            f"python convert.py model.name_or_path={run}",
        ]
        if self.best_score is not None:  # by which its jobs would be compared
            following += [self._sweep(words)]
        return "\n".join([*lines, "", "Next    " + "\n        ".join(following)])

    def _sweep(self, words: Sequence[str]) -> str:
        """Return the command line of a sweep around this run."""
        folder = RunFolder(self.folder)
        if any(word.startswith("train.resume=") for word in words):
            words = override_words(folder.asked())
        last = {word.lstrip("+~").partition("=")[0]: word for word in words}
        again = [shlex.quote(word) for word in last.values() if not word.startswith(UNSWEPT)]
        of_format = SWEPT_OF_FORMAT_C if folder.settings().data_format.name == "C" else SWEPT
        return " ".join(["python train.py -m", *again, *of_format])
