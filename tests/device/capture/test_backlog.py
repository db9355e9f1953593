# SPDX-License-Identifier: Apache-2.0
"""The backlog of images: its order and limits, and how a source ends."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from waiting import until

from splitee.errors import DataError
from splitee_device.capture.backlog import Backlog, NewImage


class Numbers:
    """A source of images of `size` bytes, named by their numbers; `error` is raised at its end."""

    def __init__(self, count: int, error: Exception | None = None, size: int = 1) -> None:
        self.next = 0
        self._size = size
        self._count = count
        self._error = error

    def images(self, stop: threading.Event) -> Iterator[NewImage]:
        while self.next < self._count and not stop.is_set():
            self.next += 1
            yield NewImage(str(self.next - 1), bytes(self._size))
        if self._error is not None:
            raise self._error


def names(backlog: Backlog, most: int = 100) -> list[int]:
    return [int(image.name) for image in backlog.take(most)]


def test_oldest_images_are_dropped_and_counted() -> None:
    source = Numbers(100)
    backlog = Backlog(source, 8)
    backlog.open(lambda: None)
    until(lambda: source.next == 100 and backlog.dropped == 92)
    assert names(backlog, 5) == [92, 93, 94, 95, 96]
    assert not backlog.ended
    assert names(backlog) == [97, 98, 99]
    until(lambda: backlog.ended)


def test_source_waits_if_no_image_may_be_dropped() -> None:
    source = Numbers(100)
    backlog = Backlog(source, 8, drops=False)
    backlog.open(lambda: None)
    until(lambda: backlog.waiting == 8)
    found: list[int] = []
    until(lambda: found.extend(names(backlog, 3)) or backlog.ended)
    assert found == list(range(100))
    assert backlog.dropped == 0


@pytest.mark.parametrize("drops", [True, False])
def test_backlog_holds_fewer_large_images_but_at_least_one(drops: bool) -> None:
    source = Numbers(10, size=100)
    backlog = Backlog(source, 8, drops=drops, room_bytes=350)
    backlog.open(lambda: None)
    until(lambda: source.next == (10 if drops else 4) and backlog.waiting == 3)
    assert backlog.dropped == (7 if drops else 0)
    assert names(backlog) == ([7, 8, 9] if drops else [0, 1, 2])
    backlog.close()
    small = Backlog(Numbers(2, size=100), 8, drops=drops, room_bytes=50)
    small.open(lambda: None)
    found: list[int] = []
    until(lambda: found.extend(names(small)) or small.ended)
    assert found[-1] == 1


def test_waiting_images_survive_closing_and_opening_the_backlog() -> None:
    source = Numbers(100)
    backlog = Backlog(source, 8, drops=False)
    found: list[int] = []
    for most in (5, 5, 100):
        backlog.open(lambda: None)
        until(lambda: backlog.waiting >= 5)
        found += names(backlog, most)
        backlog.close()
    assert found == list(range(len(found))) and len(found) >= 15


def test_consumer_is_woken_once_for_images_and_once_at_the_end() -> None:
    woken = threading.Semaphore(0)
    backlog = Backlog(Numbers(50), 100)
    backlog.open(woken.release)
    until(lambda: backlog.waiting == 50)
    assert names(backlog) == list(range(50))
    until(lambda: backlog.ended)
    assert woken.acquire(timeout=10) and woken.acquire(timeout=10)
    assert not woken.acquire(timeout=0)


def test_source_error_is_raised_after_its_images_are_taken() -> None:
    backlog = Backlog(Numbers(3, DataError("it is broken")), 8)
    backlog.open(lambda: None)
    until(lambda: backlog.waiting == 3)
    assert names(backlog) == [0, 1, 2]
    with pytest.raises(DataError, match="it is broken"):
        until(lambda: backlog.take(1))
    assert names(backlog) == []
    until(lambda: backlog.ended)
