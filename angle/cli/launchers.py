"""What runs the jobs of a sweep: Hydra's launchers, the extras that have them, and what each job prints."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from io import TextIOBase
from typing import Any, TextIO, cast

from angle.errors import ConfigError

#: Hydra's own launcher, which runs one job after the other in its own process.
BASIC = "basic"
#: The groups that choose a launcher: ours, of presets, and Hydra's.
LAUNCHER_GROUPS = ("launcher", "hydra/launcher")
#: Of each launcher that is a plug-in of Hydra's, its module and the extra that installs it.
PLUGINS = {
    "joblib": ("hydra_joblib_launcher", "joblib"),
    "submitit_local": ("hydra_submitit_launcher", "submitit"),
    "submitit_slurm": ("hydra_submitit_launcher", "submitit"),
}


def check_installed(group: str, launcher: object) -> None:
    """Raise ConfigError if a launcher is a plug-in that is not installed."""
    module, extra = PLUGINS.get(str(launcher), (None, None))
    if module is None or (find_spec("hydra_plugins") is not None and find_spec(f"hydra_plugins.{module}") is not None):
        return
    raise ConfigError(
        f"{group}={launcher} needs the package {module.replace('_', '-')}: type pip install -e '.[{extra}]'."
    )


class Lost:
    """What a launcher gives for a job whose process has ended without a word."""

    def __init__(self, error: BaseException) -> None:
        """Keep what the launcher says of it."""
        self.error = error


@contextmanager
def waiting_for_every_job(launcher: str) -> Iterator[None]:
    """Let a launcher of submitit's wait for all of its jobs: the first that was killed would end the waiting."""
    if not launcher.startswith("submitit"):
        yield
        return
    from submitit import Job
    from submitit.core.utils import FailedJobError, UncompletedJobError

    results = Job.results

    def results_or_loss(job: Any) -> Sequence[Any]:
        try:
            found: Sequence[Any] = results(job)
        except (FailedJobError, UncompletedJobError) as error:
            return [Lost(error)]
        return found

    Job.results = results_or_loss  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        Job.results = results  # type: ignore[method-assign]


@contextmanager
def labelled_lines(label: str) -> Iterator[None]:
    """Write a label before every line that is printed: other processes print on the same console."""
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast(TextIO, _LabelledLines(stream, label)) for stream in streams)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.close()
        sys.stdout, sys.stderr = streams


@contextmanager
def ended_with(parent: int) -> Iterator[None]:
    """Run a job in this process, which ends with its parent: joblib would let it go on, and keep the job's folder.

    The job ends as SIGTERM ends it, which is with a checkpoint.
    """
    watcher = _watcher(parent)
    watcher.is_idle.clear()
    try:
        yield
    finally:
        watcher.is_idle.set()


@cache
def _watcher(parent: int) -> _Watcher:
    """Return the one of this process, which it has from its first job on."""
    watcher = _Watcher(parent)
    watcher.start()
    return watcher


class _Watcher(threading.Thread):
    """Ends this process once its parent has ended."""

    def __init__(self, parent: int) -> None:
        super().__init__(daemon=True)
        self._parent = parent
        self.is_idle = threading.Event()

    def run(self) -> None:
        while os.getppid() == self._parent:
            time.sleep(1)
        if not self.is_idle.is_set():
            os.kill(os.getpid(), signal.SIGTERM)
            self.is_idle.wait()
        os._exit(128 + signal.SIGTERM)  # nobody waits for what its job has found, and it must begin no other


class _LabelledLines(TextIOBase):
    """A stream that passes on whole lines, each in one piece and behind a label. It is no terminal."""

    def __init__(self, stream: TextIO, label: str) -> None:
        self._stream, self._label, self._line = stream, label, ""

    def write(self, text: str) -> int:
        *lines, self._line = f"{self._line}{text}".split("\n")
        if lines:
            self._stream.write("".join(f"{self._label} {line}".rstrip() + "\n" for line in lines))
            self._stream.flush()
        return len(text)

    def fileno(self) -> int:
        return self._stream.fileno()

    def close(self) -> None:
        if self._line:
            self.write("\n")
