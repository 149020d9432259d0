"""Batches that a thread makes ahead: the same, in their order, and no thread that stays."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from angle.data.prefetch import prefetch


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def wait_until(made: list[int], number: int) -> None:
    for _ in range(500):
        if len(made) >= number:
            return
        time.sleep(0.01)
    raise TimeoutError


def counting(made: list[int], number: int, error: Exception | None = None) -> Iterator[int]:
    for item in range(number):
        made.append(item)
        yield item
    if error is not None:
        raise error


@pytest.mark.parametrize("number", [0, 1, 2, 9])
def test_items_come_in_their_order_and_end(number: int) -> None:
    assert list(prefetch(counting([], number))) == list(range(number))
    assert not threads()


def test_items_are_made_before_they_are_asked_for_but_not_many() -> None:
    made: list[int] = []
    items = prefetch(counting(made, 100))
    assert next(items) == 0
    wait_until(made, 4)  # the one that was taken, two that wait, and one in hand
    time.sleep(0.3)
    assert made == [0, 1, 2, 3]
    assert [next(items) for _ in range(3)] == [1, 2, 3]
    items.close()
    assert not threads()
    assert len(made) < 10


def test_an_error_comes_in_its_place() -> None:
    items = prefetch(counting([], 3, ValueError("the fourth")))
    assert [next(items) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="the fourth"):
        next(items)
    assert not threads()
