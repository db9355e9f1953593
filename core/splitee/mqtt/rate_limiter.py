# SPDX-License-Identifier: Apache-2.0
"""Limits the rate of log lines that every message could cause."""

from __future__ import annotations

import time

from splitee.clock import Clock


class RateLimiter:
    """Permits an action at most once in `seconds`."""

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
