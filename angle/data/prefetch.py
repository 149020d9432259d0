"""Prepare the next batches in a thread while the current one is trained on."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from queue import Full, Queue
from typing import TypeVar

Item = TypeVar("Item")


def prefetch(items: Iterator[Item], depth: int = 2) -> Generator[Item, None, None]:
    """Yield items, of which a thread prepares up to `depth` before they are requested.

    An exception raised while making an item is raised when that item is requested. Closing the generator ends the
    thread.
    """
    queue: Queue[tuple[Item] | BaseException | None] = Queue(depth)
    closed = threading.Event()

    def enqueue(entry: tuple[Item] | BaseException | None) -> None:
        while not closed.is_set():
            try:
                return queue.put(entry, timeout=0.1)
            except Full:
                continue

    def produce() -> None:
        try:
            for item in items:
                enqueue((item,))
                if closed.is_set():
                    return
            enqueue(None)
        except BaseException as error:
            enqueue(error)

    thread = threading.Thread(target=produce, daemon=True, name="prefetch")
    thread.start()
    try:
        while (entry := queue.get()) is not None:
            if isinstance(entry, BaseException):
                raise entry
            yield entry[0]
    finally:
        closed.set()
        thread.join(timeout=5)  # not for ever: it may be waiting for the network
