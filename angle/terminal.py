"""Printing on the main process: what takes time until there is something to print, lines and commands that fit."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Sequence

from angle.distributed.environment import is_main_process

#: Width of what is printed, whatever the terminal's, so that it is the same in a log.
COLUMNS = 80
#: Width of the column of labels.
LABEL_COLUMNS = 8
#: How a line of a command ends that the next one continues.
CONTINUED = "\\"

#: Returns to the start of the line, and clears it.
_CLEAR = "\r\x1b[K"
_is_announced = False


def announce(text: str) -> None:
    """Show what takes time now, if the main process prints on a terminal, until something else is shown."""
    global _is_announced
    if is_main_process() and sys.stdout.isatty():
        print(f"{_CLEAR}{text[: columns() - len(' ... ')]} ...", end="", flush=True)
        _is_announced = True


def clear_announcement() -> None:
    """Make room for what is to be printed."""
    global _is_announced
    if _is_announced:
        print(_CLEAR, end="", flush=True)
        _is_announced = False


def print_once(text: object) -> None:
    """Print on the main process only."""
    if is_main_process():
        clear_announcement()
        print(text, flush=True)


def print_note(text: str) -> None:
    """Print a note to stderr, beside the output, where no run has a log for it."""
    clear_announcement()
    print(labelled("note", text), file=sys.stderr)


def columns() -> int:
    """Return how wide lines may be on this terminal: as in a log, or less on a narrow one."""
    return min(shutil.get_terminal_size((COLUMNS, 24)).columns, COLUMNS)


def labelled(label: str, text: str) -> str:
    """Return a text behind its label, wrapped into lines of at most `COLUMNS`; a word that is longer stays whole."""
    start = f"{label:{LABEL_COLUMNS - 1}} "
    return textwrap.fill(
        text,
        COLUMNS,
        initial_indent=start,
        subsequent_indent=" " * len(start),
        break_long_words=False,
        break_on_hyphens=False,
    )


def wrapped_command(words: Sequence[str]) -> str:
    """Return a command line, indented like what is labelled; a long one is continued as a shell takes it."""
    lines = [" " * LABEL_COLUMNS + words[0]]
    for word in words[1:]:
        if len(f"{lines[-1]} {word} {CONTINUED}") > COLUMNS:
            lines.append(" " * (LABEL_COLUMNS + 4) + word)
        else:
            lines[-1] += f" {word}"
    return f" {CONTINUED}\n".join(lines)
