# SPDX-License-Identifier: Apache-2.0
"""The throughput of the link, and the number of bytes that may be unacknowledged."""

from __future__ import annotations

import time
from typing import NamedTuple

from splitee.clock import Clock

IN_FLIGHT_SECONDS = 4.0  # seconds that unacknowledged data may take: a ping or a status waits behind it
PART_SECONDS = 1.0  # seconds that one message may take
FIRST_IN_FLIGHT, FIRST_PART = 256 << 10, 64 << 10  # bytes, while the speed is not known
LEAST_IN_FLIGHT, LEAST_PART = 80 << 10, 20 << 10  # bytes, however slow it is
LEAST_SAMPLE = 4096  # bytes: a smaller message takes a round trip, at any speed
WEIGHT = 0.25  # of the latest message in the mean


class Stamp(NamedTuple):
    """When a message was sent, and the number of bytes acknowledged before."""

    at: float
    acknowledged: int


class SendingSpeed:
    """The speed at which the broker acknowledges, as BBR takes it: bytes acknowledged during each flight.

    A sender with little to send underestimates the speed of its link. Once it has more, the window of four
    seconds lets it find the true speed within a few round trips.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._acknowledged = 0
        self.rate: float | None = None
        """Bytes a second; None: not known yet."""

    def stamp(self) -> Stamp:
        """The stamp of a message that is sent now."""
        return Stamp(self._clock(), self._acknowledged)

    def note(self, size: int, stamp: Stamp | None) -> None:
        """Note the acknowledgement of a message of `size` bytes. `stamp` is None if it was sent again."""
        self._acknowledged += size
        if size < LEAST_SAMPLE or stamp is None:
            return
        took = max(self._clock() - stamp.at, 1e-6)
        rate = (self._acknowledged - stamp.acknowledged) / took
        self.rate = rate if self.rate is None else (1 - WEIGHT) * self.rate + WEIGHT * rate

    @property
    def max_in_flight(self) -> int:
        """Largest number of unacknowledged bytes."""
        return (
            FIRST_IN_FLIGHT if self.rate is None else max(LEAST_IN_FLIGHT, int(IN_FLIGHT_SECONDS * self.rate))
        )

    @property
    def part(self) -> int:
        """Bytes that one message should have at most."""
        return FIRST_PART if self.rate is None else max(LEAST_PART, int(PART_SECONDS * self.rate))
