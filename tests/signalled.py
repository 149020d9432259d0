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
    """Send the signals while the step is taken, if $RANK is 0, or is $SIGNALLED."""
    from angle.training.meter import Meter

    names, _, step = sys.argv[1].partition("@")
    add, steps = Meter.add, 0

    def add_signalled(self: Meter, *arguments: Any) -> None:
        nonlocal steps
        steps += 1
        if steps == int(step) and os.environ.get("RANK", "0") == os.environ.get("SIGNALLED", "0"):
            for name in names.split("+"):
                os.kill(os.getpid(), getattr(signal, name))
        add(self, *arguments)

    Meter.add = add_signalled  # type: ignore[method-assign]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored below nohup
    sys.argv = [str(REPO / sys.argv[2]), *sys.argv[3:]]
    sys.path[0] = str(REPO)
    runpy.run_path(sys.argv[0], run_name="__main__")


main()
