# SPDX-License-Identifier: Apache-2.0
"""The pace of a device, and the number of batches that it trains in a round of a given time."""

from __future__ import annotations

from splitee import round_time
from splitee.protocol.fleet import Profile
from splitee.protocol.rounds import RoundDone

FIRST_STEPS = 8  # of an unknown device: so few that no default window delays it


class Arrivals:
    """When a device's batches arrive and are taken: for how much of a phase other devices delayed it.

    If the trunk takes batches in a defined order, a fast device waits for its turn with its window full. The
    time in which the largest number of its batches waited here is therefore not its own.
    """

    def __init__(self, started: float) -> None:
        self._started = self._since = started
        self._here = 0
        self._seconds: dict[int, float] = {}  # by the number of batches that waited here

    def came(self, now: float) -> None:
        self._pass(now, 1)

    def taken(self, now: float) -> None:
        self._pass(now, -1)

    def pace(self, done: RoundDone, steps: int, now: float) -> float:
        """Seconds per batch of a device that has just ended a round of `steps` batches.

        The device's own report counts only within what the server saw: it cannot appear faster than its
        batches arrived, nor slower than the round.
        """
        self._pass(now, 0)
        elapsed = now - self._started
        held_back = self._seconds[most] if (most := max(self._seconds)) else 0.0
        reported = min(max(0.0, done.seconds - done.waited), elapsed)
        return max(reported, elapsed - held_back) / max(steps, 1)

    def _pass(self, now: float, change: int) -> None:
        self._seconds[self._here] = self._seconds.get(self._here, 0.0) + now - self._since
        self._since = now
        self._here += change


def profiled_pace(profile: Profile) -> float | None:
    """Seconds per batch at its cut, as measured by the device's profiler; None: not measured."""
    can = profile.capability
    for cost in can.cuts if can is not None else ():
        if can is not None and cost.cut == profile.cut:
            upload = cost.bytes / can.upload if can.upload else 0.0
            return round_time.pace(cost.seconds, upload, can.round_trip or 0.0)
    return None


def smoothed(before: float | None, pace: float) -> float:
    """The pace for planning. `before`: that of earlier rounds; None: there is none."""
    return pace if before is None else (before + pace) / 2


def steps_within(seconds: float, pace: float | None, most: int) -> int:
    """Number of batches in a round of the given time: at least one.

    Args:
        pace: seconds per batch; None: not known.
        most: batches of one pass over the device's images.
    """
    if pace is None:
        return min(FIRST_STEPS, most)
    return most if pace * most <= seconds else max(1, int(seconds / pace))
