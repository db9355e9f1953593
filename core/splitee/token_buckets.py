# SPDX-License-Identifier: Apache-2.0
"""Token buckets: how much each of many senders may send at once, and how much later on."""

from __future__ import annotations

MOST = 100_000  # senders whose buckets are kept


class TokenBuckets:
    """A bucket for each sender: `burst` tokens at first, then `rate` more per second, up to `burst`.

    A bucket outlives its sender. Otherwise a sender could leave and return for a full one. If there are MOST
    buckets, new senders get none.
    """

    def __init__(self, rate: float, burst: int) -> None:
        self._rate = rate
        self._burst = burst
        self._buckets: dict[str, tuple[float, float]] = {}  # tokens, and when they were counted

    def take(self, sender: str, now: float) -> bool:
        """Takes a token for `sender` at `now`, in seconds; returns whether there was one."""
        tokens, before = self._buckets.get(sender, (float(self._burst), now))
        tokens = min(self._burst, tokens + max(0.0, now - before) * self._rate)
        if tokens < 1 or (sender not in self._buckets and len(self._buckets) >= MOST):
            return False
        self._buckets[sender] = tokens - 1, now
        return True
