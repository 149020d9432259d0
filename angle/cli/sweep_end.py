"""What a sweep ends with, beside its table: what it has shown, and its page."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from angle.files import explained_disk_errors, relative_to_cwd
from angle.terminal import labelled, wrapped_command


def conclude(folder: Path) -> str:
    """Write the page of a sweep, and return what the sweep has shown and where that page is."""
    from angle.reports.writing import write_report
    from angle.sweeps.sweep import Sweep
    from angle.sweeps.verdict import verdict

    lines = [labelled("Verdict", sentence) for sentence in verdict(Sweep.read(folder))[1:]]
    with explained_disk_errors(folder, f"type python -m angle.report {folder}."):
        page = write_report([folder], pictures=False)
    return "\n".join([*lines, f"Page    {page}"])


def next_steps(folder: Path) -> Iterator[str]:
    """Yield what to type next, about the best run of a sweep, if training has helped it."""
    from angle.sweeps.sweep import Sweep
    from angle.training.result import Result
    from angle.training.summary import gain, use_commands

    ranked = Sweep.read(folder).ranked
    if not ranked:
        return
    best = max((job for job in ranked[0].jobs if job.score is not None), key=lambda job: job.score or 0.0)
    result, run = Result(best.folder, **best.result), relative_to_cwd(best.folder)
    if (gained := gain(result)) is not None and gained <= 0:
        return
    commands = [*use_commands(result, run), ["python", "-m", "angle.report", shlex.quote(run)]]
    yield "\nNext    " + "\n".join(map(wrapped_command, commands)).lstrip()
