"""When a device is late: how long a phase waits for it, learnt from what rounds took."""

from __future__ import annotations

from collections import deque
from statistics import median

from splitee.clock import Clock
from splitee_server.rounds.phase import Phase
from splitee_server.rounds.policy import Policy

REMEMBERED = 20  # rounds
FIRST_DEADLINE = 10  # times the floor: for a first round, of which nothing is known yet


class AdaptiveLimit:
    """Median + k x MAD of what devices' rounds took, with a floor (MAD: median absolute deviation).

    So single slow rounds hardly change it.
    """

    def __init__(self, floor: float, k: float = 6.0) -> None:
        """`floor`: seconds that a round may always take."""
        self._floor = floor
        self._k = k
        self._took: deque[float] = deque(maxlen=REMEMBERED)

    def note(self, seconds: float) -> None:
        """A round took so long."""
        self._took.append(seconds)

    def seconds(self) -> float:
        """How long the next round may take; the floor until a round has ended."""
        if not self._took:
            return self._floor
        middle = median(self._took)
        spread = median(abs(value - middle) for value in self._took)
        return max(self._floor, middle + self._k * spread)


class Deadline:
    """Says which devices a phase goes on without. Under `--missing wait` there are none."""

    def __init__(self, policy: Policy, clock: Clock) -> None:
        self._policy = policy
        self._clock = clock
        self._limit = AdaptiveLimit(policy.floor)

    def note(self, phase: Phase) -> None:
        """A training phase is over in which every participant has done its part."""
        self._limit.note(self._clock() - phase.started)

    def seconds(self, *, is_first: bool) -> float:
        """How long a phase may take; in a first round how long nothing may come."""
        return FIRST_DEADLINE * self._policy.floor if is_first else self._limit.seconds()

    def expired(self, phase: Phase, quorum: int, *, is_first: bool) -> tuple[str, ...]:
        """The devices that are late and waited for no longer.

        Args:
            quorum: devices that a round needs at least.
            is_first: no round has been committed. Nothing is known of how long one takes, so only devices
                that stand still count as late.
        """
        if self._policy.missing != "skip" or phase.kind not in ("train", "statistics", "evaluate"):
            return ()
        since = phase.progressed if is_first else phase.started
        if self._clock() - since <= self.seconds(is_first=is_first):
            return ()
        late = phase.late()
        left = len(phase.opened.participants) - len(late)
        if phase.kind == "train" and left < quorum:
            return ()
        return late
