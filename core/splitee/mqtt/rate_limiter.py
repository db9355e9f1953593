# SPDX-License-Identifier: Apache-2.0
"""Log lines that could come with every message: at most one in so many seconds."""

from __future__ import annotations

import time

from splitee.clock import Clock


class RateLimiter:
    """Says yes at most once in `seconds`: for log lines that could come with every message."""

    def __init__(self, seconds: float = 60.0, clock: Clock = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._next = 0.0

    def due(self) -> bool:
        now = self._clock()
        if now < self._next:
            return False
        self._next = now + self._seconds
        return True
