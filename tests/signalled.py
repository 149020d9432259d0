"""Runs a script of the repository and sends this process signals in the middle of a step: SIGNALS@STEP SCRIPT WORDS.

Step 0 is before the first one, and "end" is after the last one.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent


def main() -> None:
    """Send the signals when it is time, if $RANK is $SIGNALLED or else 0, to this process.

    With $SIGNALLED=launcher rank 0 sends them to its launcher, with everyone to both, as schedulers do.
    """
    from angle.tracking.tracker import Tracker
    from angle.training import loop
    from angle.training.meter import Meter

    names, _, step = sys.argv[1].partition("@")
    whom = os.environ.get("SIGNALLED", "0")
    rank = whom if whom.isdecimal() else "0"
    processes = {"launcher": [os.getppid()], "everyone": [os.getppid(), os.getpid()]}.get(whom, [os.getpid()])
    owner: Any
    owner, name, calls = {"0": (loop, "banner", 1), "end": (Tracker, "stop_progress", 1)}.get(
        step, (Meter, "add", int(step) if step.isdecimal() else 0)
    )
    function = getattr(owner, name)

    def call_signalled(*arguments: Any) -> Any:
        nonlocal calls
        calls -= 1
        if calls == 0 and os.environ.get("RANK", "0") == rank:
            for signal_name in names.split("+"):
                for process in processes:
                    os.kill(process, getattr(signal, signal_name))
        return function(*arguments)

    setattr(owner, name, call_signalled)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored below nohup
    sys.argv = [str(REPO / sys.argv[2]), *sys.argv[3:]]
    sys.path[0] = str(REPO)
    runpy.run_path(sys.argv[0], run_name="__main__")


main()
