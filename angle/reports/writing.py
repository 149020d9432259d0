"""Writing a report: the page, and a table and a picture of each figure, in a folder of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from angle.config import RUN_FILE, SWEEP_FILE
from angle.errors import ConfigError
from angle.files import make_folder, write_durably
from angle.reports.comparison_page import comparison_page
from angle.reports.page import Page
from angle.reports.run_page import run_page
from angle.reports.run_record import RunRecord
from angle.reports.sweep_page import sweep_page
from angle.sweeps.sweep import Sweep
from angle.sweeps.verdict import verdict

#: The page, and the folder of a report in that of its run or sweep.
PAGE_FILE, REPORT_FOLDER = "report.html", "report"
#: What the page of this project says of itself, by which a report knows its own files.
MARK = '<meta name="generator" content="angle-hydra'


def write_report(folders: Sequence[Path], output: Path | None = None, *, pictures: bool = True) -> Path:
    """Write the report of a run, of a sweep, or of several runs, and return the path of its page.

    Args:
        folders: that of one run or sweep, or those of several runs.
        output: the report's folder; by default `report` in that of the run or sweep, `comparison` for several runs.
        pictures: whether to draw each figure into a file too, which takes a second or two each.

    Raises:
        ConfigError: a folder is neither a run's nor a sweep's, or the report would replace something else.

    """
    if output is None:
        output = folders[0] / REPORT_FOLDER if len(folders) == 1 else Path("comparison")
    return write_page(_page(folders), output, pictures=pictures)


def write_page(page: Page, output: Path, *, pictures: bool) -> Path:
    """Write a page and its figures into a folder of their own, as `write_report` does, and return the page's path."""
    path = output / PAGE_FILE
    if output.is_file() or (output.is_dir() and any(output.iterdir()) and not _is_report(path)):
        raise ConfigError(f"{output} holds something else than a report: give another folder by --output.")
    make_folder(output)
    write_durably(path, page.html())
    for figure in page.figures:
        write_durably(output / f"{figure.name}.csv", figure.csv())
        if pictures:
            write_durably(output / f"{figure.name}.png", figure.png())
    return path


def _page(folders: Sequence[Path]) -> Page:
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"{folder} is no folder; give those of runs, or that of a sweep.")
    sweeps = [folder for folder in folders if (folder / SWEEP_FILE).is_file() and not (folder / RUN_FILE).is_file()]
    if len(folders) > 1:
        if sweeps:
            raise ConfigError(f"{sweeps[0]} is a sweep's folder: give one sweep alone, or several runs.")
        resolved = [folder.resolve() for folder in folders]
        if len(set(resolved)) < len(resolved):
            raise ConfigError("The same run is given twice: give different ones.")
        return comparison_page([RunRecord.read(folder) for folder in folders])
    if sweeps:
        sweep = Sweep.read(folders[0])
        return sweep_page(sweep, verdict(sweep))
    if not (folders[0] / RUN_FILE).is_file():
        raise ConfigError(
            f"{folders[0]} is neither a run's folder, which has a {RUN_FILE}, nor a sweep's, which has a {SWEEP_FILE}."
        )
    return run_page(RunRecord.read(folders[0]))


def _is_report(path: Path) -> bool:
    return path.is_file() and MARK in path.read_text(encoding="utf-8", errors="replace")[:2000]
