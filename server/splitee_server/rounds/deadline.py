"""How long a round may take: learnt from what rounds took, robust against single slow ones."""

from __future__ import annotations

from collections import deque
from statistics import median

REMEMBERED = 20  # rounds


class AdaptiveDeadline:
    """Median + k x MAD of what devices' rounds took, with a floor (MAD: median absolute deviation)."""

    def __init__(self, floor: float, k: float = 6.0) -> None:
        """`floor`: seconds that a round may always take."""
        self._floor = floor
        self._k = k
        self._took: deque[float] = deque(maxlen=REMEMBERED)

    def note(self, seconds: float) -> None:
        """A round, or a device's part of it, took so long."""
        self._took.append(seconds)

    def seconds(self) -> float:
        """How long the next round may take; the floor until a round has ended."""
        if not self._took:
            return self._floor
        middle = median(self._took)
        spread = median(abs(value - middle) for value in self._took)
        return max(self._floor, middle + self._k * spread)
