# SPDX-License-Identifier: Apache-2.0
"""The images that have come and wait to be classified: as many as there is room for, the newest."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

CLOSING = 5.0  # seconds that a source may take to end
MOMENT = 0.2  # seconds between two looks at whether to stop
ROOM_BYTES = 64 << 20  # of encoded images that wait, however many may: memory is what a small board lacks


class NewImage(NamedTuple):
    """An image's name, and its file or encoded bytes."""

    name: str
    source: Path | bytes


class Source(Protocol):
    """What images come from."""

    def images(self, stop: threading.Event) -> Iterator[NewImage]:
        """Each image as it comes, waiting in between, until `stop` is set or there will be none any more.

        May be called again when it has ended. Raises DataError: there will be none, for what reason.
        """


class Backlog:
    """Takes images from a source on a thread of its own, and keeps them in their order until they are wanted.

    Where there is no room for a new one, the oldest are dropped, or the source waits. One alone has room.

    Attributes:
        dropped: images so far.
    """

    def __init__(
        self, source: Source, room: int, *, drops: bool = True, room_bytes: int = ROOM_BYTES
    ) -> None:
        """Args:
        room: images that may wait.
        drops: the oldest makes room for a new one, as of a camera: what is classified late shows what was.
        room_bytes: of encoded images that may wait; files are not held.
        """
        self._source = source
        self._waiting: deque[NewImage] = deque()
        self._bytes = 0
        self._room = room
        self._room_bytes = room_bytes
        self._drops = drops
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._wake: Callable[[], None] = lambda: None
        self.dropped = 0

    def open(self, wake: Callable[[], None]) -> None:
        """Begin to collect; what waits from before still does.

        `wake` is called, on the thread that collects, when there is something for who waited in vain.
        """
        self._stop, self._wake = threading.Event(), wake
        self._thread = threading.Thread(target=self._collect, args=(self._stop,), name="images", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Collect no more; what waits stays."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(CLOSING)

    @property
    def waiting(self) -> int:
        """Images."""
        return len(self._waiting)

    @property
    def ended(self) -> bool:
        """Whether there is nothing left, and will be nothing any more."""
        if self._thread is None or self._thread.is_alive():
            return False
        return not (self._waiting or self._failure)  # looked at last: a thread that lives may still put one

    def take(self, most: int) -> list[NewImage]:
        """The images that have waited longest, in their order. Raises what has ended the source."""
        with self._changed:
            taken = [self._pop() for _ in range(min(most, len(self._waiting)))]
            self._changed.notify()
        if not taken and self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        return taken

    def _collect(self, stop: threading.Event) -> None:
        images = self._source.images(stop)
        try:
            for image in images:
                self._put(image, stop)
                if stop.is_set():
                    return
        except BaseException as error:  # whoever takes the images is told
            self._failure = error
        finally:
            close = getattr(images, "close", None)
            if close is not None:
                close()
            self._wake()

    def _put(self, image: NewImage, stop: threading.Event) -> None:
        """What has come is kept, even where `stop` ends the wait for room."""
        size = _bytes_of(image)
        with self._changed:
            while self._is_full(size) and not self._drops and not stop.is_set():
                self._changed.wait(MOMENT)
            while self._is_full(size) and self._drops:
                self._pop()
                self.dropped += 1
            self._waiting.append(image)
            self._bytes += size
            is_first = len(self._waiting) == 1
        if is_first:
            self._wake()

    def _is_full(self, size: int) -> bool:
        """Whether an image of `size` bytes has to wait until another one is gone."""
        return bool(self._waiting) and (
            len(self._waiting) >= self._room or self._bytes + size > self._room_bytes
        )

    def _pop(self) -> NewImage:
        image = self._waiting.popleft()
        self._bytes -= _bytes_of(image)
        return image


def _bytes_of(image: NewImage) -> int:
    return len(image.source) if isinstance(image.source, bytes) else 0
