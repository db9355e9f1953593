# SPDX-License-Identifier: Apache-2.0
"""How many events of one device are told: no device fills the log of the fleet."""

from __future__ import annotations

BURST = 20  # events of a device at once
SECONDS = 60.0  # after which it may have one more
KEPT = 100_000  # devices whose events are counted


class EventLimits:
    """A token bucket for each device. It outlives the device, which could else come anew to fill it."""

    def __init__(self) -> None:
        self._buckets: dict[str, tuple[float, float]] = {}  # tokens, and when they were counted

    def admits(self, device: str, now: float) -> bool:
        """Whether one more event of `device` is told at `now`, in seconds; it counts as told."""
        tokens, before = self._buckets.get(device, (float(BURST), now))
        tokens = min(BURST, tokens + max(0.0, now - before) / SECONDS)
        if tokens < 1:
            return False
        if len(self._buckets) >= KEPT:
            self._buckets.clear()
        self._buckets[device] = tokens - 1, now
        return True
