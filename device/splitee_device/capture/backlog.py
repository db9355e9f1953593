# SPDX-License-Identifier: Apache-2.0
"""A bounded queue of images that wait to be classified."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

CLOSE_TIMEOUT = 5.0  # seconds that a source may take to end
POLL_EVERY = 0.2  # seconds between two checks of the stop event
ROOM_BYTES = 64 << 20  # of encoded images that wait, whatever their number: small boards lack memory


class NewImage(NamedTuple):
    """An image's name, and its file or encoded bytes."""

    name: str
    source: Path | bytes


class Source(Protocol):
    """A source of images."""

    def images(self, stop: threading.Event) -> Iterator[NewImage]:
        """Yields each image as it comes, until `stop` is set or no more can come.

        May be called again after it has ended. Raises DataError: no more can come, and why.
        """


class Backlog:
    """Takes images from a source on its own thread, and keeps them in order until they are wanted.

    If there is no room for a new image, the oldest are dropped, or the source waits. One image always fits.

    Attributes:
        dropped: number of images dropped so far.
    """

    def __init__(
        self, source: Source, room: int, *, drops: bool = True, room_bytes: int = ROOM_BYTES
    ) -> None:
        """Args:
        room: images that may wait.
        drops: the oldest images make room for new ones, as for a camera, whose old images are outdated.
        room_bytes: of encoded images that may wait; files do not count.
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
        """Starts collecting; images that wait from before stay.

        `wake` is called on the collecting thread when an image comes and none was waiting, and at the end.
        """
        self._stop, self._wake = threading.Event(), wake
        self._thread = threading.Thread(target=self._collect, args=(self._stop,), name="images", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops collecting; images that wait stay."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(CLOSE_TIMEOUT)

    @property
    def waiting(self) -> int:
        """Number of waiting images."""
        return len(self._waiting)

    @property
    def ended(self) -> bool:
        """Whether no image is left, and none will come."""
        if self._thread is None or self._thread.is_alive():
            return False
        return not (self._waiting or self._failure)  # checked last: a living thread may still add one

    def take(self, most: int) -> list[NewImage]:
        """The images that have waited longest, in order. Raises the error that ended the source."""
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
        except BaseException as error:  # raised again for the caller of `take`
            self._failure = error
        finally:
            close = getattr(images, "close", None)
            if close is not None:
                close()
            self._wake()

    def _put(self, image: NewImage, stop: threading.Event) -> None:
        """Keeps an image that has come, even if `stop` ends the wait for room."""
        size = _bytes_of(image)
        with self._changed:
            while self._is_full(size) and not self._drops and not stop.is_set():
                self._changed.wait(POLL_EVERY)
            while self._is_full(size) and self._drops:
                self._pop()
                self.dropped += 1
            self._waiting.append(image)
            self._bytes += size
            is_first = len(self._waiting) == 1
        if is_first:
            self._wake()

    def _is_full(self, size: int) -> bool:
        """Whether an image of `size` bytes must wait until another one is removed."""
        return bool(self._waiting) and (
            len(self._waiting) >= self._room or self._bytes + size > self._room_bytes
        )

    def _pop(self) -> NewImage:
        image = self._waiting.popleft()
        self._bytes -= _bytes_of(image)
        return image


def _bytes_of(image: NewImage) -> int:
    return len(image.source) if isinstance(image.source, bytes) else 0
