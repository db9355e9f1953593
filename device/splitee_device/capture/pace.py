# SPDX-License-Identifier: Apache-2.0
"""Which images of a stream are taken: one in an interval, or those after a trigger."""

from __future__ import annotations

import threading
import time

from splitee.clock import Clock


class Pace:
    """Used by two threads: one reads the stream and calls `takes`, the other calls `trigger`."""

    def __init__(self, every: float, window: float | None = None, *, clock: Clock = time.monotonic) -> None:
        """Args:
        every: seconds between two images; 0: all are taken.
        window: seconds after a trigger in which images are taken; 0: one image; None: there is no trigger.
        """
        self._every = every
        self._window = window
        self._clock = clock
        self._lock = threading.Lock()
        self._due = clock()
        self._until = clock()  # end of the trigger's window
        self._is_owed = False  # the first image after a trigger is still to be taken

    def trigger(self) -> None:
        """Opens a window that begins with the next image; a trigger within a window extends it."""
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
            # Counted from when it was due: at 30 images a second, SECONDS of 0.1 give 10 a second, not 7.5.
            # After a pause of the stream that is longer than SECONDS, it is counted anew.
            is_late = now - self._due > self._every
            self._due = (now if is_late else self._due) + self._every
            return True
