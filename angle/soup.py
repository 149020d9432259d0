"""Model soups, the mean of the weights of trained runs: python -m angle.soup RUN RUN ..., or SWEEP."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from angle.cli.user_errors import exit_on_user_error
from angle.files import relative_to_cwd
from angle.terminal import announce, labelled, print_once, wrapped_command

if TYPE_CHECKING:
    from angle.soups.soup import Try


def arguments_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m angle.soup",
        description="Make one model of several trained runs: the weighted mean of their weights, in a run's folder.",
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="finished runs, or a sweep")
    parser.add_argument(
        "--method",
        choices=("uniform", "greedy"),
        default="uniform",
        help="uniform: the mean of all, of a sweep the seeds of the best setting; greedy: the best run first, and each "
        "other that makes the soup no worse on the validation rows (default: uniform)",
    )
    parser.add_argument("--weights", nargs="+", type=float, metavar="W", help="the weight of each run (default: equal)")
    parser.add_argument(
        "--base-share",
        type=float,
        default=0.0,
        metavar="B",
        help="share of the model that the runs started from, from 0 to below 1 (default: 0)",
    )
    parser.add_argument(
        "--output-dir", type=Path, metavar="FOLDER", help="the new folder (default: soups/ and the time)"
    )
    return parser


def main() -> None:
    """Make the soup that the command line asks for; print what it is made of, its scores, and what to type next."""
    arguments = arguments_parser().parse_args()
    with exit_on_user_error():
        announce("loading libraries")
        from angle.soups.soup import make_soup
        from angle.soups.summary import next_commands, summary

        soup = make_soup(
            arguments.folders,
            arguments.method,
            arguments.weights,
            arguments.base_share,
            arguments.output_dir,
            report=_print_try,
        )
        for label, text in summary(soup):
            print_once(labelled(label, text))
        commands = "\n".join(map(wrapped_command, next_commands(soup)))
        print_once(f"Saved   {relative_to_cwd(soup.folder)}/final\n\nNext    {commands.lstrip()}")


def _print_try(tried: Try) -> None:
    metric = tried.ingredient.metric
    assert metric is not None
    own, of_soup = (metric.format(score or 0.0) for score in (tried.ingredient.score, tried.soup_score))
    what = "kept" if tried.is_kept else "left out"
    name = shlex.quote(tried.ingredient.name)
    print_once(labelled("Tried", f"{name}: {metric.label} {own}, the soup with it {of_soup}: {what}"))


if __name__ == "__main__":
    main()
