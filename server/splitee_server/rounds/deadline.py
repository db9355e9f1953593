# SPDX-License-Identifier: Apache-2.0
"""When a device is late: how long a phase waits for it, learnt from earlier rounds."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from splitee.clock import Clock
from splitee_server.rounds.phase import Phase
from splitee_server.rounds.policy import Policy

REMEMBERED = 20  # rounds
FIRST_DEADLINE = 10  # times the floor: while the length of a round is unknown
SENDING = 10  # times the limit for a device whose bytes arrive: a hostile one could send for ever


class AdaptiveLimit:
    """Median + k x MAD of the devices' round times, with a floor (MAD: median absolute deviation).

    Single slow rounds hardly change it.
    """

    def __init__(self, floor: float, k: float = 6.0) -> None:
        """`floor`: seconds that a round may always take."""
        self._floor = floor
        self._k = k
        self._took: deque[float] = deque(maxlen=REMEMBERED)

    def note(self, seconds: float) -> None:
        """Note the length of a round."""
        self._took.append(seconds)

    @property
    def is_learnt(self) -> bool:
        """Whether a round has ended."""
        return bool(self._took)

    def seconds(self) -> float:
        """Seconds that the next round may take; the floor until a round has ended."""
        if not self._took:
            return self._floor
        middle = median(self._took)
        spread = median(abs(value - middle) for value in self._took)
        return max(self._floor, middle + self._k * spread)


@dataclass(frozen=True)
class Late:
    """Devices that a phase no longer waits for, and the seconds that they had."""

    devices: tuple[str, ...]
    seconds: float


class Deadline:
    """Decides which devices a phase continues without; none under `--missing wait`."""

    def __init__(self, policy: Policy, clock: Clock) -> None:
        self._policy = policy
        self._clock = clock
        self._limit = AdaptiveLimit(policy.floor)

    def note(self, phase: Phase) -> None:
        """Note a training phase in which every participant has done its part."""
        self._limit.note(self._clock() - phase.started)

    def expired(self, phase: Phase, quorum: int, is_online: Callable[[str], bool]) -> Late | None:
        """The late devices; None: there are none, or too few would be left.

        Until one round has ended, the length of a round is unknown. Until then devices are late only if there
        was no progress: offline ones after the floor, all others after FIRST_DEADLINE times the floor.

        Args:
            quorum: smallest number of devices of a round.
        """
        if self._policy.missing != "skip" or phase.kind not in ("train", "statistics", "evaluate"):
            return None
        late = self._late(phase, is_online)
        left = len(phase.participants) - len(late.devices)
        if not late.devices or (phase.kind == "train" and left < quorum):
            return None
        return late

    def _late(self, phase: Phase, is_online: Callable[[str], bool]) -> Late:
        now = self._clock()
        if self._limit.is_learnt:
            seconds = self._limit.seconds()
            return Late(_late_at(now, phase, phase.waiting_since, seconds), seconds)
        floor, stood = self._policy.floor, now - phase.progressed_at
        if late := _late_at(now, phase, phase.progressed_at, FIRST_DEADLINE * floor):
            return Late(late, FIRST_DEADLINE * floor)
        gone = (device for device in phase.late() if not is_online(device)) if stood > floor else ()
        return Late(tuple(gone), floor)


def _late_at(now: float, phase: Phase, waiting_since: float, limit: float) -> tuple[str, ...]:
    """The late devices; none while one that is waited for is sending, or until `limit` seconds after that.

    Over a slow link a batch or a client network takes minutes, and other devices may have to wait for it.
    """
    if now - max(waiting_since, phase.extended_at) <= limit:
        return ()
    late = phase.late()
    if now - waiting_since <= SENDING * limit and any(phase.is_sending(device) for device in late):
        phase.extended_at = now
        return ()
    return late
