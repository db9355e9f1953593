# SPDX-License-Identifier: Apache-2.0
"""The product's link without its network thread: whoever has the socket in an epoll moves its packets."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from splitee.mqtt.address import BrokerAddress
from splitee.mqtt.events import Event
from splitee.mqtt.link import Link

KEEP_ALIVE = 600  # seconds: a thousand devices share the CPU here that each has for itself elsewhere


class PolledLink(Link):
    """One device's link. What would block gives the turn to others instead."""

    def __init__(
        self, address: BrokerAddress, client_id: str, will: tuple[str, bytes], pause: Callable[[], None]
    ) -> None:
        super().__init__(address, client_id, will=will, keepalive=KEEP_ALIVE)
        self._pause = pause
        self._goes_on: Callable[[], object] = lambda: True
        self._until = 0.0

    def is_due(self, now: float) -> bool:
        """Whether what the device waits for has come, or its time is over by the monotonic clock."""
        return now >= self._until or bool(self._goes_on())

    def _wait(self, condition: Callable[[], object], until: float = math.inf) -> None:
        self._goes_on, self._until = condition, until
        while not condition() and time.monotonic() < until:
            self._pause()

    def dial(self) -> int:
        """Connect; returns the socket's number. The broker's answer, and all else, comes with `read`."""
        self._connection._dial()
        client = self._client
        for end in (client._sockpairR, client._sockpairW):  # they wake a thread that is not there
            if end is not None:
                end.close()
        client._sockpairR = client._sockpairW = None
        self.write()
        opened = client.socket()
        if opened is None:
            raise ConnectionError(f"broker {self.address} has closed the connection")
        return opened.fileno()

    @property
    def is_up(self) -> bool:
        """Whether there is a connection, or one is being made."""
        return self._client.socket() is not None

    @property
    def wants_to_write(self) -> bool:
        return bool(self._client.want_write())

    def read(self) -> None:
        """Take in what has come."""
        self._client.loop_read()

    def write(self) -> None:
        """Send what the socket takes."""
        client = self._client
        while client.want_write():
            before = len(client._out_packet)
            client.loop_write()
            if len(client._out_packet) >= before:
                return

    def keep_alive(self) -> None:
        self._client.loop_misc()

    def say_goodbye(self) -> None:
        """DISCONNECT, so that the last will does not speak, and close."""
        self._connection.say_goodbye(with_will=False)
        self.write()
        self.vanish()

    def vanish(self) -> None:
        """Close the socket without a word."""
        opened = self._client.socket()
        if opened is not None:
            opened.close()

    def receive(self, timeout: float | None) -> Event | None:
        until = math.inf if timeout is None else time.monotonic() + timeout
        if timeout != 0:
            self._wait(lambda: self._inbox._events, until)
        return super().receive(0)

    def publish(self, *arguments: Any, **options: Any) -> bool:
        in_flight = self._in_flight
        self._wait(lambda: not in_flight.up or len(in_flight) < in_flight._window)
        is_kept = super().publish(*arguments, **options)
        self.write()
        return is_kept
