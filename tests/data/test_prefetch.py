"""Batches that a thread prepares: the same, in the same order, and the thread ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from angle.data.prefetch import prefetch


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def wait_until(produced: list[int], number: int) -> None:
    for _ in range(500):
        if len(produced) >= number:
            return
        time.sleep(0.01)
    raise TimeoutError


def counting(produced: list[int], number: int, error: Exception | None = None) -> Iterator[int]:
    for item in range(number):
        produced.append(item)
        yield item
    if error is not None:
        raise error


@pytest.mark.parametrize("number", [0, 1, 2, 9])
def test_items_come_in_order_and_end(number: int) -> None:
    assert list(prefetch(counting([], number))) == list(range(number))
    assert not threads()


def test_only_a_few_items_are_prepared_before_they_are_requested() -> None:
    produced: list[int] = []
    items = prefetch(counting(produced, 100))
    assert next(items) == 0
    wait_until(produced, 4)  # the one that was taken, two that wait, and one in hand
    time.sleep(0.3)
    assert produced == [0, 1, 2, 3]
    assert [next(items) for _ in range(3)] == [1, 2, 3]
    items.close()
    assert not threads()
    assert len(produced) < 10


def test_an_error_is_raised_when_its_item_is_requested() -> None:
    items = prefetch(counting([], 3, ValueError("the fourth")))
    assert [next(items) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="the fourth"):
        next(items)
    assert not threads()
