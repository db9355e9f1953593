# SPDX-License-Identifier: Apache-2.0
"""The bounded queue between a link's network thread and the reader of its events."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from splitee.mqtt.events import Event, Message, Overflow
from splitee.mqtt.rate_limiter import RateLimiter

RESERVE = 256
Key = Callable[[Message], Hashable | None]

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Latest:
    """A slot in the queue for the latest message of a key."""

    key: Hashable
    message: Message


Queued = Event | Exception | _Latest


class EventQueue:
    """A queue bounded in events and in their bytes; events that do not fit are dropped and counted.

    The reader gets an `Overflow` in the place of dropped events. Connected, Disconnected and errors have
    reserved room, so that a flood of messages never hides them. Only the latest message of a key waits.
    """

    def __init__(self, capacity: int, capacity_bytes: int, key: Key = lambda _message: None) -> None:
        """`key`: a message replaces the waiting message with the same key; None: it replaces none.

        An empty message, which clears its topic, replaces none, and none after it replaces one before it.
        """
        self._capacity = capacity
        self._capacity_bytes = capacity_bytes
        self._key = key
        self._events: deque[Queued] = deque()
        self._held: deque[Queued] | None = None
        self._latest: dict[Hashable, _Latest] = {}
        self._bytes = 0
        self._lock = threading.RLock()  # taken by itself: a condition takes it with calls of its own
        self._changed = threading.Condition(self._lock)
        self._log_drop = RateLimiter()
        self.dropped = 0

    def put(self, event: Event | Exception) -> None:
        """Add an event. Never blocks and never raises."""
        is_message = isinstance(event, Message)
        size = _size(event) if isinstance(event, Message) else 0
        key = self._key(event) if isinstance(event, Message) else None
        room = self._capacity if is_message else self._capacity + RESERVE
        with self._lock:
            before = self._latest.get(key) if isinstance(event, Message) and event.payload else None
            replaced = 0 if before is None else _size(before.message)
            count = 0 if before is not None else len(self._events) + len(self._held or ())
            if count < room and self._bytes + size - replaced <= self._capacity_bytes:
                self._bytes += size - replaced
                self._keep(event, key, before)
                self._changed.notify()
                return
            self.dropped += 1
            queue = self._events if self._held is None else self._held
            if not queue or not isinstance(queue[-1], Overflow):
                queue.append(Overflow())
                self._changed.notify()
        if self._log_drop.due():
            log.warning(
                "event queue full (%d events, %d bytes): %d dropped so far", room, self._bytes, self.dropped
            )

    def _keep(self, event: Event | Exception, key: Hashable, before: _Latest | None) -> None:
        if before is not None and isinstance(event, Message):
            before.message = event
            return
        queued: Queued = event
        if key is not None and isinstance(event, Message):
            if event.payload:
                queued = self._latest[key] = _Latest(key, event)
            else:
                self._latest.pop(key, None)
        (self._events if self._held is None else self._held).append(queued)

    def hold(self) -> None:
        """Hold back events that are put from now on until `release`."""
        with self._lock:
            if self._held is None:
                self._held = deque()
                self._latest.clear()  # a later message must not take an earlier place

    def release(self, first: Event | None = None) -> bool:
        """Deliver `first`, then the events held back; False if none are held back."""
        with self._lock:
            if self._held is None:
                return False
            self._events.extend([] if first is None else [first])
            self._events.extend(self._held)
            self._held = None
            self._changed.notify()
            return True

    def get(self, timeout: float | None) -> Event | None:
        """The oldest event, or None after `timeout` seconds (None: waits for ever); raises a queued error."""
        with self._lock:
            if not self._events and (
                timeout == 0 or not self._changed.wait_for(lambda: self._events, timeout)
            ):
                return None
            queued = self._events.popleft()
            if isinstance(queued, _Latest):
                event: Event | Exception = queued.message
                if self._latest.get(queued.key) is queued:
                    del self._latest[queued.key]
            else:
                event = queued
            if isinstance(event, Message):
                self._bytes -= _size(event)
        if isinstance(event, Exception):
            raise event
        return event


def _size(message: Message) -> int:
    """Bytes of its payload and of what MQTT carries beside it, which may be 64 KiB each."""
    return len(message.payload) + len(message.response_topic or "") + len(message.correlation or b"")
