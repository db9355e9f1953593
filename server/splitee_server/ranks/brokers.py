# SPDX-License-Identifier: Apache-2.0
"""Rank 0's port if ranks have brokers of their own: one port for all brokers."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence

from splitee.mqtt.address import BrokerAddress
from splitee.mqtt.events import Event, Message
from splitee.mqtt.link import Link
from splitee.mqtt.meter import Meter
from splitee.protocol.topics import Topics

PAUSE = 0.005  # seconds between two polls of all brokers, while no message arrives


class SeveralBrokers:
    """Publishes messages for all devices at every broker, and those for one device at the device's broker.

    This is the broker of the device's latest message. A retained message counts only until the device has
    sent another one: the device may have moved to another broker since.
    """

    def __init__(self, links: Sequence[Link], topics: Topics) -> None:
        """`links`: one per broker."""
        self._links = list(links)
        self._topics = topics
        self._at: dict[str, int] = {}  # index of a device's broker
        self._has_published: set[str] = set()
        self._turns = itertools.cycle(range(len(links)))
        self._meter: Meter | None = None

    def broker_of(self, device: str) -> BrokerAddress | None:
        """The broker that a device uses; None: it has sent no message."""
        return self._links[self._at[device]].address if device in self._at else None

    @property
    def meter(self) -> Meter | None:
        return self._meter

    @meter.setter
    def meter(self, meter: Meter | None) -> None:
        self._meter = meter
        for link in self._links:
            link.meter = meter

    @property
    def connected(self) -> bool:
        """To all of them."""
        return all(link.connected for link in self._links)

    @property
    def alive(self) -> bool:
        return all(link.alive for link in self._links)

    @property
    def max_packet(self) -> int:
        return min(link.max_packet for link in self._links)

    @property
    def part_size(self) -> int:
        return min(link.part_size for link in self._links)

    @property
    def links(self) -> Sequence[Link]:
        """One per broker."""
        return self._links

    @property
    def dropped(self) -> int:
        return sum(link.dropped for link in self._links)

    @property
    def cpu(self) -> float:
        return sum(link.cpu for link in self._links)

    def open(self, timeout: float | None, stop: Callable[[], bool] = lambda: False) -> None:
        """Raises what `Link.open` raises for the first broker that it cannot reach."""
        for link in self._links:
            link.open(timeout, stop)

    def close(self, offline_message: tuple[str, bytes] | None = None) -> None:
        for link in self._links:
            link.close(offline_message)

    def subscribe(self, *filters: str) -> None:
        for link in self._links:
            link.subscribe(*filters)

    def unsubscribe(self, *filters: str) -> None:
        for link in self._links:
            link.unsubscribe(*filters)

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
        """False: one of the brokers to publish at is not connected."""
        of_device = self._topics.parse_device(topic)
        at = None if of_device is None else self._at.get(of_device[0])
        links = self._links if at is None else [self._links[at]]
        sent = [
            link.publish(
                topic,
                payload,
                retain=retain,
                expiry=expiry,
                response_topic=response_topic,
                correlation=correlation,
            )
            for link in links
        ]
        return all(sent)

    def receive(self, timeout: float | None) -> Event | None:
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            for _ in self._links:
                number = next(self._turns)
                event = self._links[number].receive(0)
                if event is not None:
                    self._note(number, event)
                    return event
            left = PAUSE if until is None else until - time.monotonic()
            if left <= 0:
                return None
            time.sleep(min(PAUSE, left))

    def _note(self, number: int, event: Event) -> None:
        if not isinstance(event, Message) or not event.payload:
            return
        of_device = self._topics.parse_device(event.topic)
        if of_device is None or (event.retained and of_device[0] in self._has_published):
            return
        if not event.retained:
            self._has_published.add(of_device[0])
        self._at[of_device[0]] = number
