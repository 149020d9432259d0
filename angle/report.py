"""Pages of runs and sweeps: python -m angle.report RUN, SWEEP, or RUN RUN ..."""

from __future__ import annotations

import argparse
from pathlib import Path

from angle.cli.user_errors import exit_on_user_error
from angle.files import relative_to_cwd


def arguments_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m angle.report",
        description="Make the page of a run, of a sweep, or of several runs: one HTML file that needs no network, and "
        "a CSV file and a picture of each of its figures.",
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="a run, a sweep, or several runs")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="where to write it (default: report/ in the run or sweep, else comparison/)",
    )
    parser.add_argument("--no-pictures", action="store_true", help="leave out the pictures, which take the most time")
    return parser


def main() -> None:
    """Write the report that the command line asks for, and print where it is."""
    arguments = arguments_parser().parse_args()
    with exit_on_user_error():
        from angle.reports.writing import write_report

        path = write_report(arguments.folders, arguments.output, pictures=not arguments.no_pictures)
        print(f"Saved   {relative_to_cwd(path)}")


if __name__ == "__main__":
    main()
