"""A user's mistake as one sentence on the console, and the exit codes of a script."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from angle.distributed.environment import is_local_main_process, report_failure
from angle.errors import ConfigError, DataError, HubError, StoppedError, TrainingError
from angle.terminal import clear_announcement

USER_ERRORS = (ConfigError, DataError, TrainingError)

#: Exit codes as shells report them: 128 + SIGINT, 128 + SIGPIPE.
EXIT_SIGINT, EXIT_SIGPIPE = 130, 141
#: Exit code of a run that a signal has stopped and that can go on: try again later (EX_TEMPFAIL).
EXIT_STOPPED = 75

#: Seconds within which a launcher that lost a process has ended the others: it polls ten times a second.
LAUNCHER_SHUTDOWN_SECONDS = 3


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """End the program with one sentence and exit code 1 on a user error."""
    try:
        yield
    except (*USER_ERRORS, HubError) as error:
        print_error(error)
        sys.exit(1)
    except StoppedError as stopped:
        report_failure(f"stopped by {stopped}; the run can go on")
        sys.exit(EXIT_STOPPED)
    except KeyboardInterrupt:
        sys.exit(EXIT_SIGINT)
    except BrokenPipeError:
        exit_on_broken_pipe()


def print_error(error: Exception) -> None:
    """Print an error to stderr: once per machine, if all of its processes meet it."""
    if not is_local_main_process():
        # If the main process meets it too, it prints it, and the launcher ends this one.
        time.sleep(LAUNCHER_SHUTDOWN_SECONDS)
    clear_announcement()
    print(f"Error: {error}", file=sys.stderr, flush=True)
    report_failure(str(error))


def exit_on_broken_pipe() -> NoReturn:
    """Exit quietly: the program that reads the output, such as `head`, has stopped reading."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # swallow what is flushed at exit
    sys.exit(EXIT_SIGPIPE)
