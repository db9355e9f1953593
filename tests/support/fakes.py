# SPDX-License-Identifier: Apache-2.0
"""A clock that tests advance and a port without a broker: waits of minutes take milliseconds."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from typing import NamedTuple

from paho.mqtt.client import topic_matches_sub

from splitee.mqtt.address import BrokerAddress
from splitee.mqtt.events import Event, Message
from splitee.mqtt.meter import Meter

FOREVER = 24 * 3600.0  # seconds of fake time after which a waiting test fails


class FakeClock:
    """Seconds that advance only by a test, or by a fake port that waits."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class Sent(NamedTuple):
    """A published message."""

    topic: str
    payload: bytes
    retain: bool
    correlation: bytes | None


class RecordingMeter:
    """A `Meter` that records each message: topic, bytes of its payload and of its headers."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, int, int]] = []
        self.incoming: list[tuple[str, int, int]] = []

    def published(self, topic: str, payload: int, headers: int) -> None:
        self.sent.append((topic, payload, headers))

    def received(self, topic: str, payload: int, headers: int) -> None:
        self.incoming.append((topic, payload, headers))


class FakePort:
    """A `Port` that records published messages, and returns the events of a test in order of time.

    Attributes:
        sent: all published messages.
        subscribed: filters in the order of their subscription.
        on_sent: called with each published message, so that a test can reply.
    """

    def __init__(self, clock: FakeClock, *, max_packet: int = 1 << 20) -> None:
        self.clock = clock
        self.max_packet = max_packet
        self.connected = True
        self.alive = True
        self.refused = 0
        self.speed: float | None = None
        self.busy = 0.0
        self.meter: Meter | None = None
        self.address = BrokerAddress("broker.test", 1883)
        self.sent: list[Sent] = []
        self.subscribed: list[str] = []
        self.on_sent: Callable[[Sent], None] = lambda _sent: None
        self._events: list[tuple[float, int, Event | Exception]] = []  # a heap, by time and order
        self._order = itertools.count()
        self._last = clock() + FOREVER

    @property
    def part_size(self) -> int:
        return self.max_packet

    def deliver(
        self, topic: str, payload: bytes, *, retained: bool = False, correlation: bytes | None = None
    ) -> None:
        """A message that is received now."""
        self.later(0, topic, payload, retained=retained, correlation=correlation)

    def later(
        self,
        seconds: float,
        topic: str,
        payload: bytes,
        *,
        retained: bool = False,
        correlation: bytes | None = None,
    ) -> None:
        """A message that is received after `seconds`."""
        self.happen(Message(topic, payload, retained=retained, correlation=correlation), seconds)

    def happen(self, event: Event | Exception, seconds: float = 0) -> None:
        """Any event after `seconds`; `receive` raises an exception, such as a broker's refusal."""
        heapq.heappush(self._events, (self.clock() + seconds, next(self._order), event))

    @property
    def has_events(self) -> bool:
        """Whether events are still to be received."""
        return bool(self._events)

    def payloads(self, topic: str) -> list[bytes]:
        """The payloads published on `topic`, in order."""
        return [sent.payload for sent in self.sent if sent.topic == topic]

    def subscribe(self, *filters: str) -> None:
        self.subscribed.extend(name for name in filters if name not in self.subscribed)

    def unsubscribe(self, *filters: str) -> None:
        self.subscribed = [name for name in self.subscribed if name not in filters]

    def publish(
        self,
        topic: str,
        payload: bytes | memoryview | bytearray,
        *,
        retain: bool = False,
        expiry: int | None = None,
        response_topic: str | None = None,
        correlation: bytes | None = None,
    ) -> bool:
        body = bytes(payload)
        if len(body) > self.max_packet:
            raise ValueError(f"message on {topic}: {len(body)} bytes, at most {self.max_packet} are sent")
        if not self.connected:
            return False
        if self.meter is not None:
            self.meter.published(topic, len(body), 0)
        self.sent.append(Sent(topic, body, retain, correlation))
        self.on_sent(self.sent[-1])
        return True

    def flush(self, timeout: float | None) -> bool:
        """The broker acknowledges at once."""
        return self.connected

    def receive(self, timeout: float | None) -> Event | None:
        """The next event, to whose time the clock advances; None: there is none within `timeout` seconds."""
        now = self.clock()
        until = self._last if timeout is None else now + timeout
        if not self._events or self._events[0][0] > until:
            self.clock.advance(until - now)
            if self.clock() >= self._last:
                raise AssertionError("the test waits for an event that never comes")
            return None
        due, _, event = heapq.heappop(self._events)
        self.clock.advance(max(0.0, due - now))
        if isinstance(event, Exception):
            raise event
        if isinstance(event, Message) and not self._is_subscribed(event.topic):
            raise AssertionError(f"{event.topic} was not subscribed to: {self.subscribed}")
        if isinstance(event, Message) and self.meter is not None:
            self.meter.received(event.topic, len(event.payload), 0)
        return event

    def _is_subscribed(self, topic: str) -> bool:
        return any(topic_matches_sub(each, topic) for each in self.subscribed)
