# SPDX-License-Identifier: Apache-2.0
"""The bounded queue between a link's network thread and who reads its events."""

from __future__ import annotations

import logging
import threading
from collections import deque

from splitee.mqtt.events import Event, Message
from splitee.mqtt.rate_limiter import RateLimiter

RESERVE = 256


log = logging.getLogger(__name__)


class EventQueue:
    """A queue bounded in events and in payload bytes; what does not fit is dropped and counted.

    Connected, Disconnected and errors have a reserve of their own: a flood of messages never hides them.
    """

    def __init__(self, capacity: int, capacity_bytes: int) -> None:
        self._capacity = capacity
        self._capacity_bytes = capacity_bytes
        self._events: deque[Event | Exception] = deque()
        self._held: deque[Event | Exception] | None = None
        self._bytes = 0
        self._changed = threading.Condition()
        self._log_drop = RateLimiter()
        self.dropped = 0

    def put(self, event: Event | Exception) -> None:
        """Never blocks and never raises."""
        size = len(event.payload) if isinstance(event, Message) else 0
        room = self._capacity if isinstance(event, Message) else self._capacity + RESERVE
        with self._changed:
            count = len(self._events) + len(self._held or ())
            if count < room and self._bytes + size <= self._capacity_bytes:
                self._bytes += size
                (self._events if self._held is None else self._held).append(event)
                self._changed.notify()
                return
            self.dropped += 1
        if self._log_drop.due():
            log.warning(
                "event queue full (%d events, %d bytes): %d dropped so far", room, self._bytes, self.dropped
            )

    def hold(self) -> None:
        """What is put from here on waits for `release`."""
        with self._changed:
            if self._held is None:
                self._held = deque()

    def release(self, first: Event | None = None) -> bool:
        """Delivers `first`, then what was held; False when nothing is on hold."""
        with self._changed:
            if self._held is None:
                return False
            self._events.extend([] if first is None else [first])
            self._events.extend(self._held)
            self._held = None
            self._changed.notify()
            return True

    def get(self, timeout: float | None) -> Event | None:
        """The oldest event, or None after `timeout` seconds (None: waits for ever); raises a queued error."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._events, timeout):
                return None
            event = self._events.popleft()
            if isinstance(event, Message):
                self._bytes -= len(event.payload)
        if isinstance(event, Exception):
            raise event
        return event
