# SPDX-License-Identifier: Apache-2.0
"""Limits log lines that may repeat without end: the first ones are logged, then fewer and fewer."""

from __future__ import annotations

from splitee.mqtt.rate_limiter import RateLimiter

FIRST = 30.0  # seconds without progress before the first line
FEW = 5
SELDOM = 600.0  # seconds between two lines at last: six an hour, whether for a day or a month


class Reminder:
    """The pauses between lines about one wait double, up to SELDOM; another wait begins with FIRST."""

    def __init__(self) -> None:
        self._what: object = None
        self._said: float | None = None
        self._pause = FIRST

    def due(self, now: float, quiet_since: float, what: object = None) -> bool:
        """Whether a line is due `now`, which is then taken to be said.

        Args:
            quiet_since: when there was progress last, by the same clock.
            what: the wait; compared with that of the call before.
        """
        if what != self._what:
            self._what, self._said, self._pause = what, None, FIRST
        last = quiet_since if self._said is None else max(quiet_since, self._said)
        if now - last < self._pause:
            return False
        self._said, self._pause = now, min(2 * self._pause, SELDOM)
        return True


class FirstFew:
    """The first FEW lines of a kind, then one in so many seconds.

    Attributes:
        count: of the lines that there could have been.
    """

    def __init__(self, seconds: float = 60.0) -> None:
        self.count = 0
        self._later = RateLimiter(seconds)

    def due(self) -> bool:
        """Whether one more line is to be logged."""
        self.count += 1
        return self.count <= FEW or self._later.due()
