"""What a sweep ends with, beside its table: what it has shown, its page, and what to type next."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from angle.files import explained_disk_errors, relative_to_cwd
from angle.sweeps.budget import PRESET_FILE
from angle.sweeps.record import FINISHED
from angle.terminal import labelled, wrapped_command

if TYPE_CHECKING:
    from angle.sweeps.sweep import Sweep


def conclude(folder: Path, written: str) -> Iterator[str]:
    """Write the page of a sweep; yield what it has shown, where that page is, `written`, and what to type next."""
    from angle.reports.sweep_page import sweep_page
    from angle.reports.writing import REPORT_FOLDER, write_page
    from angle.sweeps.sweep import Sweep
    from angle.sweeps.verdict import verdict

    sweep = Sweep.read(folder)
    sentences = verdict(sweep)
    with explained_disk_errors(folder, f"type python -m angle.report {folder}."):
        page = write_page(sweep_page(sweep, sentences), folder / REPORT_FOLDER, pictures=False)
    yield from (labelled("Verdict", sentence) for sentence in sentences[1:])
    if sweep.budget is not None:
        yield labelled("Time", sweep.budget.spent_in_words())
    if sweep.budget is not None and sweep.budget.model is not None:
        yield labelled("Model", relative_to_cwd(Path(sweep.budget.model)))
        preset = relative_to_cwd(folder / PRESET_FILE)
        yield labelled("Preset", f"{preset}: copied to conf/experiment/NAME.yaml, it is experiment=NAME")
    yield f"Page    {page}"
    yield written
    yield from _next_steps(sweep)


def _next_steps(sweep: Sweep) -> Iterator[str]:
    """Yield what to type next, about the best run of a sweep, if training has helped it."""
    from angle.training.result import Result
    from angle.training.summary import gain, use_commands

    if not sweep.ranked:
        return
    best = max((job for job in sweep.ranked[0].jobs if job.score is not None), key=lambda job: job.score or 0.0)
    best = sweep.model or best
    result, run = Result(best.folder, **best.result), relative_to_cwd(best.folder)
    if (gained := gain(result)) is not None and gained <= 0:
        return
    commands = [*use_commands(result, run), ["python", "-m", "angle.report", shlex.quote(run)]]
    if not sweep.axes and sum(job.status == FINISHED for job in sweep.jobs) > 1:  # seeds alone: their mean is a model
        commands.append(["python", "-m", "angle.soup", shlex.quote(relative_to_cwd(sweep.folder))])
    yield "\nNext    " + "\n".join(map(wrapped_command, commands)).lstrip()
