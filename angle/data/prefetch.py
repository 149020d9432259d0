"""Prepare the next batches while the current one computes."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from queue import Full, Queue
from typing import TypeVar

Item = TypeVar("Item")


def prefetch(items: Iterator[Item], number: int = 2) -> Generator[Item, None, None]:
    """Yield items, of which a thread makes up to `number` before they are requested.

    An exception raised while making an item is raised when that item is requested. Closing the generator ends the
    thread.
    """
    made: Queue[tuple[Item] | BaseException | None] = Queue(number)
    closed = threading.Event()

    def put(entry: tuple[Item] | BaseException | None) -> None:
        while not closed.is_set():
            try:
                return made.put(entry, timeout=0.1)
            except Full:
                continue

    def work() -> None:
        try:
            for item in items:
                put((item,))
                if closed.is_set():
                    return
            put(None)
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=work, daemon=True, name="batches ahead")
    thread.start()
    try:
        while (entry := made.get()) is not None:
            if isinstance(entry, BaseException):
                raise entry
            yield entry[0]
    finally:
        closed.set()
        thread.join(timeout=5)  # not for ever: it may be waiting for the network
