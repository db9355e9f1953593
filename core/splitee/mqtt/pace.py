# SPDX-License-Identifier: Apache-2.0
"""The publishing rate of a link whose broker limits it."""

from __future__ import annotations

import time

from splitee.clock import Clock

FIRST = 0.1  # seconds between two publications after a broker's first refusal
LONGEST = 10.0
RECOVERY = 300.0  # seconds without a refusal after which it tries to be a fifth faster
SETTLE_TIME = 1.0  # seconds, at least, until what was in flight at a refusal is over

# Reasons that a broker gives a client that publishes too fast: on closing, and for a single message.
QUOTA_REASONS = {"message rate too high", "quota exceeded"}


class Pace:
    """The pause between publications: none at first, doubled with each refusal by the broker."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._pause = 0.0
        self._since = 0.0  # when it was last changed
        self._next = 0.0  # when the next publication may go

    @property
    def pause(self) -> float:
        """Seconds between two publications; 0: the broker has not refused any."""
        return self._pause

    def slow_down(self) -> bool:
        """Slow down after a refusal. False: the refused message was sent at an earlier pace."""
        now = self._clock()
        if self._pause and now - self._since < max(SETTLE_TIME, 2 * self._pause):
            return False
        self._pause = min(LONGEST, max(FIRST, 2 * self._pause))
        self._since, self._next = now, now + self._pause
        return True

    def settle(self) -> None:
        """Ignore the burst of retained messages and acknowledgements at the start of a connection."""
        self._next = max(self._next, self._clock() + max(SETTLE_TIME, self._pause))

    def reserve(self) -> float:
        """Seconds until the next publication may go; reserves this time, so that a later one waits longer."""
        if not self._pause:
            return 0.0
        now = self._clock()
        if now - self._since > RECOVERY:
            self._pause, self._since = 0.8 * self._pause, now
            if self._pause < FIRST / 10:
                self._pause = 0.0
        due = max(now, self._next)
        self._next = due + self._pause
        return due - now
