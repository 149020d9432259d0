"""What a sweep ends with, beside its table: what it has shown, and its page."""

from __future__ import annotations

from pathlib import Path

from angle.files import explained_disk_errors
from angle.terminal import labelled


def conclude(folder: Path) -> str:
    """Write the page of a sweep, and return what the sweep has shown and where that page is."""
    from angle.reports.writing import write_report
    from angle.sweeps.sweep import Sweep
    from angle.sweeps.verdict import verdict

    lines = [labelled("Shown", sentence) for sentence in verdict(Sweep.read(folder))[1:]]
    with explained_disk_errors(folder, f"type python -m angle.report {folder}."):
        page = write_report([folder], pictures=False)
    return "\n".join([*lines, f"Page    {page}"])
