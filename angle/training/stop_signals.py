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
#: Once one process has ended, a launcher sends the others a signal, and gives them this time.
SHUTDOWN_SECONDS = 30.0


class StopSignals:
    """What signals have asked of this process, and with `agree` of any process of the run."""

    def __init__(self, processes: int) -> None:
        """Start without a signal; `processes` is how many train together."""
        self._processes = processes
        self._cause: str | None = None  # what ends the run
        self._patient_until = 0.0  # until then, what several processes get is no second signal
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
        """Wait with stopping until `agree` is asked, which is after every step. Every process must enter this.

        Raises:
            StoppedError: a signal came before the first step, or after `agree` was asked for the last one.

        """
        self._in_step = True
        try:
            self._stop_together()
            yield
            self._stop_together()
        finally:
            self._in_step = False

    def agree(self) -> tuple[bool, bool]:
        """Return whether to stop after this step, and whether to save it. Every process must call this."""
        wish_to_stop, wish_to_save = self._cause is not None, self._cause is not None or self._save
        self._save = False
        stop, save = self._any_process(wish_to_stop, wish_to_save)
        return stop, save

    def _stop_together(self) -> None:
        """Raise StoppedError in every process if one of them has a signal that ends the run."""
        if self._any_process(self._cause is not None)[0]:
            raise self.stopped()

    def _any_process(self, stop: bool, *wishes: bool) -> list[bool]:
        """Return which wishes any process has; one that does not wish to stop notes that another does."""
        agreed = all_reduce_max([int(wish) for wish in (stop, *wishes)], self._processes)
        if agreed[0] and self._cause is None:
            self._begin_to_stop("another process's signal")
        return [bool(wish) for wish in agreed]

    def stopped(self) -> StoppedError:
        """Return the error that ends the run; whichever process ends first, the others have time to say so."""
        assert self._cause is not None
        self._patient_until = time.monotonic() + SHUTDOWN_SECONDS
        return StoppedError(self._cause)

    def _begin_to_stop(self, cause: str) -> None:
        self._cause, self._patient_until = cause, time.monotonic() + LAUNCHER_SECONDS

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        if self._cause is not None:
            if self._processes == 1 or time.monotonic() > self._patient_until:
                os._exit(128 + number)
            return
        self._begin_to_stop(signal.Signals(number).name)
        if not self._in_step and self._processes == 1:  # several stop together, or else some would wait for others
            raise self.stopped()

    def _on_save(self, number: int, frame: FrameType | None) -> None:
        self._save = True
