"""Runs a script of the repository and sends this process signals in the middle of a step: SIGNALS@STEP SCRIPT WORDS."""

from __future__ import annotations

import os
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent


def main() -> None:
    """Send the signals while the step is taken, if $RANK is $SIGNALLED or else 0, to this process.

    With $SIGNALLED=launcher rank 0 sends them to its launcher, with everyone to both, as schedulers do.
    """
    from angle.training.meter import Meter

    names, _, step = sys.argv[1].partition("@")
    whom = os.environ.get("SIGNALLED", "0")
    rank = whom if whom.isdecimal() else "0"
    processes = {"launcher": [os.getppid()], "everyone": [os.getppid(), os.getpid()]}.get(whom, [os.getpid()])
    add, steps = Meter.add, 0

    def add_signalled(self: Meter, *arguments: Any) -> None:
        nonlocal steps
        steps += 1
        if steps == int(step) and os.environ.get("RANK", "0") == rank:
            for name in names.split("+"):
                for process in processes:
                    os.kill(process, getattr(signal, name))
        add(self, *arguments)

    Meter.add = add_signalled  # type: ignore[method-assign]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored below nohup
    sys.argv = [str(REPO / sys.argv[2]), *sys.argv[3:]]
    sys.path[0] = str(REPO)
    runpy.run_path(sys.argv[0], run_name="__main__")


main()
