# SPDX-License-Identifier: Apache-2.0
"""Since when each device is waited for: since the first check that missed its next message."""

from __future__ import annotations

from collections.abc import Iterable

from splitee.clock import Clock
from splitee.protocol.overview import MOST_WAITED_FOR, WaitedFor
from splitee_server.rounds.phase import Phase

LEAST = 2.0  # seconds; a fleet in training waits for some device at any moment

Awaited = tuple[str, int, int]  # what is waited for: phase, round, batch


class WaitingSince:
    """Updated about every second; the time of a device that has sent something starts again."""

    def __init__(self, wall: Clock) -> None:
        """`wall`: seconds since the epoch."""
        self._wall = wall
        self._since: dict[str, tuple[Awaited, float]] = {}

    def note(self, phase: Phase, devices: Iterable[str]) -> None:
        """Note the devices that are waited for now."""
        now, before = self._wall(), self._since
        self._since = {}
        for device in devices:
            step = phase.next_step(device) if device in phase else 0
            awaited = (phase.kind, phase.opened.round, step)
            known = before.get(device)
            self._since[device] = known if known is not None and known[0] == awaited else (awaited, now)

    def longest(self) -> tuple[WaitedFor, ...]:
        """The devices waited for, longest first, except those that have been waited for only a moment."""
        latest = self._wall() - LEAST
        waiting = sorted((since, device) for device, (_, since) in self._since.items() if since <= latest)
        return tuple(WaitedFor(device, round(since, 1)) for since, device in waiting[:MOST_WAITED_FOR])
