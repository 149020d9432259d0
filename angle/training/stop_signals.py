"""Signals to a run: they end it after a step, with a checkpoint of that step, or save one and let it go on."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from angle.distributed.process_group import all_reduce_max
from angle.errors import StoppedError

#: What ends a run: a terminal that interrupts or hangs up, a scheduler that needs the machine.
STOP = ("SIGINT", "SIGTERM", "SIGHUP")
SAVE = "SIGUSR1"
#: A launcher passes on what its processes have got already from the terminal. Within this time it is the same signal.
LAUNCHER_SECONDS = 5.0


class StopSignals:
    """What signals have asked of this process, and with `agree` of any process of the run."""

    def __init__(self, processes: int) -> None:
        """Start without a signal; `processes` is how many train together."""
        self._processes = processes
        self._stop: signal.Signals | None = None
        self._stop_time = 0.0
        self._save = False
        self._in_step = False

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note signals instead of dying of them, except those that this process ignores or handles already."""
        handlers: dict[str, Callable[[int, FrameType | None], None]] = dict.fromkeys(STOP, self._on_stop)
        previous: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():  # others may set none, and get none
            for name, handler in (handlers | {SAVE: self._on_save}).items():
                number = getattr(signal, name, None)  # Windows lacks some
                if number is not None and signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                    previous[number] = signal.signal(number, handler)
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    @contextmanager
    def steps(self) -> Iterator[None]:
        """Wait with stopping until `agree` is asked, which is after every step.

        Raises:
            StoppedError: a signal came after that of the last step.

        """
        self._in_step = True
        try:
            yield
        finally:
            self._in_step = False
        if self._stop is not None:
            raise self.stopped()

    def agree(self) -> tuple[bool, bool]:
        """Return whether to stop after this step, and whether to save it. Every process must call this."""
        wishes = [self._stop is not None, self._stop is not None or self._save]
        self._save = False
        stop, save = all_reduce_max([int(wish) for wish in wishes], self._processes)
        return bool(stop), bool(save)

    def stopped(self) -> StoppedError:
        """Return the error that ends the run."""
        return StoppedError("another process's signal" if self._stop is None else self._stop.name)

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        if self._stop is not None:
            if self._processes == 1 or time.monotonic() - self._stop_time > LAUNCHER_SECONDS:
                os._exit(128 + number)
            return
        self._stop, self._stop_time = signal.Signals(number), time.monotonic()
        if not self._in_step:
            raise self.stopped()

    def _on_save(self, number: int, frame: FrameType | None) -> None:
        self._save = True
