"""The outcome of a run, as numbers and as the final message on the console."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from angle.config.overrides import hydra_override, hydra_overrides
from angle.distributed.environment import script_command
from angle.evaluation.run_evaluators import DEFAULT_METRIC, TEST_METRIC, metric_named
from angle.files import relative_to_cwd
from angle.training.run_folder import RunFolder

SWEEP_FLAGS = frozenset({"-m", "--multirun"})
#: How command-line words start that a sweep of the same run leaves out.
LEFT_OUT_OF_SWEEP = ("-", "hub.", "hydra.", "train.output_dir=", "train.resume=")
#: Settings worth sweeping; where the in-batch loss is the only one, its weight merely scales the whole loss.
SUGGESTED_SWEEP = {"loss.ibn_w": "10,20,30", "loss.angle_tau": "1,20"}
SUGGESTED_SWEEP_OF_FORMAT_C = {"loss.ibn_tau": "10,20,50"}


@dataclass(frozen=True)
class Result:
    """The outcome of a run."""

    folder: Path
    already_finished: bool = False
    """The run was already finished; nothing was done."""
    best_metric: str | None = DEFAULT_METRIC.name
    """Name of the metric that chose the best model; None without validation rows for one."""
    best_score: float | None = None
    """Its best value; None without one."""
    best_step: int | None = None
    """The step at which it was reached."""
    test_before: float | None = None
    """`TEST_METRIC` on data.test before training."""
    test_after: float | None = None
    """The same after training, for the best model if there is one, otherwise for the final one."""
    test_word_overlap: float | None = None
    """The same of a baseline that only counts shared words."""
    pushed: str | None = None
    """Where the model is on the hub."""
    already_pushed: bool = False
    """It was already there; nothing was pushed."""
    push_problem: str | None = None
    """Why the push failed, and how to retry."""

    @property
    def score(self) -> float | None:
        """The best score as a sweep compares it: higher is better, so a loss is negated; None without one."""
        return None if self.best_score is None else metric_named(self.best_metric).score(self.best_score)

    def summary(self, words: Sequence[str] = ()) -> str:
        """Return what a user wants to know after a run: the score, where the model is, what to type next.

        Args:
            words: the command line, for suggesting a sweep of the same run; that of a sweep gets no next steps, which
                concern only its best job.

        """
        run = relative_to_cwd(self.folder)
        lines = [f"{run} holds this run already, finished."] if self.already_finished else []
        if self.test_before is not None and self.test_after is not None:
            lines += [
                f"Test    {TEST_METRIC.label} {self.test_before:.4f} before training, {self.test_after:.4f} after "
                f"(shared words alone: {self.test_word_overlap:.4f})"
            ]
        if self.best_score is not None:
            label = metric_named(self.best_metric).label
            lines += [f"Best    {label} {self.best_score:.4f} on validation, at step {self.best_step}"]
        lines += [f"Saved   {run}/{'best' if self.best_step is not None else 'final'}"]
        if self.pushed is not None:
            lines += [f"Pushed  {self.pushed}{' (by this run before)' if self.already_pushed else ''}"]
        if not SWEEP_FLAGS.isdisjoint(words):
            return "\n".join(lines)
        model = shlex.quote(hydra_override("model.name_or_path", run))
        next_steps = [
            f"python {script_command('evaluate.py')} {model}{'' if self.test_after else ' tasks=[stsb]'}",
            f"python {script_command('convert.py')} {model}",
        ]
        if self.best_score is not None:  # the sweep would compare its jobs by it
            next_steps += [self._sweep(words)]
        return "\n".join([*lines, "", "Next    " + "\n        ".join(next_steps)])

    def _sweep(self, words: Sequence[str]) -> str:
        """Return the command line of a hyperparameter sweep around this run."""
        folder = RunFolder(self.folder)
        if any(word.startswith("train.resume=") for word in words):
            words = hydra_overrides(folder.requested_config())
        swept = SUGGESTED_SWEEP_OF_FORMAT_C if folder.resolved_config().data_format.name == "C" else SUGGESTED_SWEEP
        last = {word.lstrip("+~").partition("=")[0]: word for word in words if not word.startswith(LEFT_OUT_OF_SWEEP)}
        unswept = [shlex.quote(word) for name, word in last.items() if name not in swept]
        sweep = [f"{name}={values}" for name, values in swept.items()]
        return " ".join([f"python {script_command('train.py')} -m", *unswept, *sweep])
