# SPDX-License-Identifier: Apache-2.0
"""Limits log lines that may repeat without end: the first ones are logged, then fewer and fewer."""

from __future__ import annotations

from splitee.mqtt.rate_limiter import RateLimiter

FIRST = 30.0  # seconds without progress before the first line
FEW = 5
SELDOM = 600.0  # the longest interval between two lines: six an hour, however long it lasts


class Reminder:
    """The pauses between lines about one wait double, up to SELDOM; another wait begins with FIRST."""

    def __init__(self) -> None:
        self._subject: object = None
        self._logged_at: float | None = None
        self._pause = FIRST

    def due(self, now: float, quiet_since: float, subject: object = None) -> bool:
        """Whether a line is due `now`; if so, it counts as logged.

        Args:
            quiet_since: time of the last progress, by the same clock.
            subject: what is waited for; another one than in the call before begins with FIRST.
        """
        if subject != self._subject:
            self._subject, self._logged_at, self._pause = subject, None, FIRST
        last = quiet_since if self._logged_at is None else max(quiet_since, self._logged_at)
        if now - last < self._pause:
            return False
        self._logged_at, self._pause = now, min(2 * self._pause, SELDOM)
        return True


class FirstFew:
    """Allows the first FEW lines of a kind, then one in so many seconds.

    Attributes:
        count: number of lines so far, logged or not.
    """

    def __init__(self, seconds: float = 60.0) -> None:
        self.count = 0
        self._later = RateLimiter(seconds)

    def due(self) -> bool:
        """Whether one more line is to be logged."""
        self.count += 1
        return self.count <= FEW or self._later.due()
