# SPDX-License-Identifier: Apache-2.0
"""The window of publications that the broker has not acknowledged yet."""

from __future__ import annotations

import threading
import time
from typing import NamedTuple

from splitee.clock import Clock
from splitee.mqtt.sending_speed import SendingSpeed, Stamp

IN_FLIGHT = 20  # paho sends all of them again, at once, when it reconnects


class _Flight(NamedTuple):
    topic: str
    size: int
    stamp: Stamp | None


class InFlight:
    """The publications that the broker has not acknowledged: a bounded number, each with its topic.

    Also bounded in bytes, to what the link carries in a few seconds. Its lock is never held while paho is
    called: paho calls back under locks of its own.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._window = IN_FLIGHT
        self.acknowledged = 0
        self._flights: dict[int, _Flight] = {}
        self._bytes = 0
        self._busy, self._busy_since = 0.0, clock()
        self._early: set[int] = set()  # acknowledged before `sent` was told their number
        self._sending = _Flight("", 0, None)
        self._up = False
        self._lock = threading.RLock()  # taken by itself: a condition takes it with calls of its own
        self._changed = threading.Condition(self._lock)
        self.speed = SendingSpeed(clock)

    def __len__(self) -> int:
        return len(self._flights)

    @property
    def window(self) -> int:
        return self._window

    @property
    def up(self) -> bool:
        return self._up

    @property
    def busy(self) -> float:
        """Seconds so far in which something was unacknowledged while the link was up."""
        with self._lock:
            return self._busy + (self._clock() - self._busy_since if self._up and self._flights else 0.0)

    def _pause_busy(self) -> None:
        """Add the time since `_busy_since`; called before the last message goes or the link changes state."""
        if self._up and self._flights:
            now = self._clock()
            self._busy, self._busy_since = self._busy + now - self._busy_since, now

    def start(self, window: int) -> None:
        with self._lock:
            self._pause_busy()
            self._up, self._busy_since = True, self._clock()
            self._window = window
            again = {number: flight._replace(stamp=None) for number, flight in self._flights.items()}
            self._flights = again
            self._changed.notify_all()

    def narrow(self, window: int) -> None:
        """Limit the number from now on."""
        with self._lock:
            self._window = min(self._window, window)

    def stop(self) -> None:
        with self._lock:
            self._pause_busy()
            self._up = False
            self._changed.notify_all()

    def wait_while_up(self, seconds: float) -> None:
        """Wait for the given time, or until the link is down."""
        if seconds > 0:
            with self._lock:
                self._changed.wait_for(lambda: not self._up, seconds)

    def wait_for_room(self, topic: str, size: int) -> bool:
        """Wait until a message of `size` bytes may be sent; False if the link goes down."""
        with self._lock:
            if not self._has_room(size):
                self._changed.wait_for(lambda: self._has_room(size))
            self._sending = _Flight(topic, size, self.speed.stamp())
            return self._up

    def _has_room(self, size: int) -> bool:
        if not self._up or not self._flights:
            return True
        return len(self._flights) < self._window and self._bytes + size <= self.speed.max_in_flight

    def sent(self, number: int) -> None:
        """Note the packet number of the message that `wait_for_room` admitted."""
        with self._lock:
            if number in self._early:
                self._early.discard(number)
            else:
                if not self._flights:
                    self._busy_since = self._clock()
                self._flights[number] = self._sending
                self._bytes += self._sending.size

    def acknowledge(self, number: int) -> str:
        """Note an acknowledgement; returns the topic of the message."""
        with self._lock:
            if len(self._flights) == 1:
                self._pause_busy()
            flight = self._flights.pop(number, None)
            if flight is None:
                self._early.add(number)
                flight = self._sending
            else:
                self._bytes -= flight.size
            self.speed.note(flight.size, flight.stamp)
            self.acknowledged += 1
            self._changed.notify_all()
            return flight.topic

    def clear(self) -> None:
        with self._lock:
            self._pause_busy()
            self._flights.clear()
            self._bytes = 0
            self._early.clear()
            self._changed.notify_all()

    def wait_until_empty(self, timeout: float | None) -> bool:
        with self._lock:
            return self._changed.wait_for(lambda: not self._flights, timeout)
