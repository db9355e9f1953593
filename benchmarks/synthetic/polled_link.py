# SPDX-License-Identifier: Apache-2.0
"""The product's link without its network thread: an epoll loop moves its packets."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Any, cast

from splitee.mqtt.address import BrokerAddress
from splitee.mqtt.link import Link

KEEP_ALIVE = 600  # seconds; long, because a thousand devices share one process


class Turn:
    """Replaces a lock and its condition: while one device waits, others have their turns."""

    def __init__(self, pause: Callable[[], None]) -> None:
        self._pause = pause
        self._condition: Callable[[], object] = lambda: True
        self._until = 0.0

    def __enter__(self) -> None:
        """No lock is needed: only one device has its turn."""

    def __exit__(self, *_: object) -> None:
        """See `__enter__`."""

    def notify(self) -> None:
        """Nothing to do: the caller that gives turns checks `is_due`."""

    notify_all = notify

    def wait_for(self, condition: Callable[[], object], timeout: float | None = None) -> bool:
        self._condition = condition
        self._until = math.inf if timeout is None else time.monotonic() + timeout
        while not condition() and time.monotonic() < self._until:
            self._pause()
        return bool(condition())

    def is_due(self, now: float) -> bool:
        """Whether the condition holds, or the wait has timed out."""
        return now >= self._until or bool(self._condition())


class PolledLink(Link):
    """One device's link. Calls that would block give the turn to other devices instead."""

    def __init__(
        self, address: BrokerAddress, client_id: str, will: tuple[str, bytes], pause: Callable[[], None]
    ) -> None:
        super().__init__(address, client_id, will=will, keepalive=KEEP_ALIVE)
        self._turn = Turn(pause)
        for shared in (self._in_flight, self._inbox):  # no lock is held while others have their turns
            shared._lock, shared._changed = cast(Any, self._turn), cast(threading.Condition, self._turn)
        self._client.on_socket_register_write = lambda *_: None  # there is no network thread to wake

    def is_due(self, now: float) -> bool:
        """Whether the device has something to do."""
        return self._turn.is_due(now)

    def dial(self) -> int:
        """Connect; returns the socket's file descriptor. `read` receives the broker's reply."""
        self._connection._dial()
        client = self._client
        for end in (client._sockpairR, client._sockpairW):  # they would wake paho's own loop
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
        """Whether the link is connected or connecting."""
        return self._client.socket() is not None

    @property
    def wants_to_write(self) -> bool:
        return bool(self._client.want_write())

    def read(self) -> None:
        """Receive all packets, including bytes that TLS has already read, which epoll does not report."""
        self._client.loop_read()
        while (pending := getattr(self._client.socket(), "pending", None)) is not None and pending():
            self._client.loop_read()

    def write(self) -> None:
        """Send packets until the socket accepts no more."""
        client = self._client
        while client.want_write():
            before = len(client._out_packet)
            client.loop_write()
            if len(client._out_packet) >= before:
                return

    def publish(self, *arguments: Any, **options: Any) -> bool:
        is_kept = super().publish(*arguments, **options)
        self.write()
        return is_kept

    def keep_alive(self) -> None:
        self._client.loop_misc()

    def disconnect(self) -> None:
        """Send DISCONNECT, so that the broker does not publish the last will, and close the socket."""
        self._connection.disconnect(with_will=False)
        self.write()
        self.vanish()

    def vanish(self) -> None:
        """Close the socket without DISCONNECT."""
        opened = self._client.socket()
        if opened is not None:
            opened.close()
