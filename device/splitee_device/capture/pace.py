# SPDX-License-Identifier: Apache-2.0
"""Which images of a stream are taken: one in so many seconds, or those after a trigger."""

from __future__ import annotations

import threading
import time

from splitee.clock import Clock


class Pace:
    """Asked by the thread that reads the stream, and told by another one of triggers."""

    def __init__(self, every: float, window: float | None = None, *, clock: Clock = time.monotonic) -> None:
        """Args:
        every: seconds between two images; 0: all are taken.
        window: seconds after a trigger in which images are taken; 0: one is; None: there is no trigger.
        """
        self._every = every
        self._window = window
        self._clock = clock
        self._lock = threading.Lock()
        self._due = clock()
        self._until = clock()  # the trigger's window
        self._is_owed = False  # the first image after a trigger

    def trigger(self) -> None:
        """The next image is taken, and others until the window is over; within a window, it lasts longer."""
        assert self._window is not None
        with self._lock:
            now = self._clock()
            if now >= self._until:
                self._due, self._is_owed = now, True
            self._until = now + self._window

    def takes(self) -> bool:
        """Whether the image that has just come is taken."""
        with self._lock:
            now = self._clock()
            is_open = self._window is None or self._is_owed or now < self._until
            if not is_open or now < self._due:
                return False
            self._is_owed = False
            # From when it was due: with 30 images a second, SECONDS of 0.1 give 10 a second, not 7.5.
            self._due = max(self._due + self._every, now)
            return True
