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

KEEP_ALIVE = 600  # seconds: a thousand devices share the CPU here that each has for itself elsewhere


class Turn:
    """In the place of a lock and its condition, where others have their turn while one waits."""

    def __init__(self, pause: Callable[[], None]) -> None:
        self._pause = pause
        self._condition: Callable[[], object] = lambda: True
        self._until = 0.0

    def __enter__(self) -> None:
        """Nobody else has the turn."""

    def __exit__(self, *_: object) -> None:
        """As above."""

    def notify(self) -> None:
        """The caller that gives turns checks `is_due`."""

    notify_all = notify

    def wait_for(self, condition: Callable[[], object], timeout: float | None = None) -> bool:
        self._condition = condition
        self._until = math.inf if timeout is None else time.monotonic() + timeout
        while not condition() and time.monotonic() < self._until:
            self._pause()
        return bool(condition())

    def is_due(self, now: float) -> bool:
        """Whether what is waited for has come, or the time for it is over."""
        return now >= self._until or bool(self._condition())


class PolledLink(Link):
    """One device's link. What would block gives the turn to others instead."""

    def __init__(
        self, address: BrokerAddress, client_id: str, will: tuple[str, bytes], pause: Callable[[], None]
    ) -> None:
        super().__init__(address, client_id, will=will, keepalive=KEEP_ALIVE)
        self._turn = Turn(pause)
        for shared in (self._in_flight, self._inbox):  # nobody holds a lock while others have their turn
            shared._lock, shared._changed = cast(Any, self._turn), cast(threading.Condition, self._turn)
        self._client.on_socket_register_write = lambda *_: None  # there is no thread to be woken

    def is_due(self, now: float) -> bool:
        """Whether the device has something to do."""
        return self._turn.is_due(now)

    def dial(self) -> int:
        """Connect; returns the socket's number. The broker's reply, and all else, comes with `read`."""
        self._connection._dial()
        client = self._client
        for end in (client._sockpairR, client._sockpairW):  # they wake paho's own loop
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
        """Take in what has come, also what the socket has read ahead, of which epoll knows nothing."""
        self._client.loop_read()
        while (pending := getattr(self._client.socket(), "pending", None)) is not None and pending():
            self._client.loop_read()

    def write(self) -> None:
        """Send what the socket takes."""
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
        """DISCONNECT, so that the last will does not speak, and close."""
        self._connection.disconnect(with_will=False)
        self.write()
        self.vanish()

    def vanish(self) -> None:
        """Close the socket without a word."""
        opened = self._client.socket()
        if opened is not None:
            opened.close()
