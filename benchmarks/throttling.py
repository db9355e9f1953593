# SPDX-License-Identifier: Apache-2.0
"""A proxy that limits how fast each client may publish to a broker, as managed brokers do."""

from __future__ import annotations

import socket
import threading
import time
from collections import deque
from contextlib import suppress
from typing import BinaryIO, Literal

Way = Literal["disconnect", "refuse"]

PUBLISH, PUBACK, PINGREQ = 3, 4, 12  # types of packets, in the upper half of their first byte
FREE = {PUBACK, PINGREQ}  # those that do not count: how many a client sends is up to the broker
RATE_TOO_HIGH = bytes((0xE0, 2, 0x96, 0))  # DISCONNECT, "Message rate too high", no properties
QUOTA_EXCEEDED = 0x97


class ThrottlingProxy:
    """Takes so many packets a second of each connection: too many are told and end it, or are refused.

    Attributes:
        address: where clients connect, mqtt://HOST:PORT.
        complaints: how often a client was told.
        rate: packets a second, counted over the last second; 0: without a limit. It may be changed.
    """

    def __init__(self, host: str, port: int, rate: int, way: Way, *, listens: str = "127.0.0.1") -> None:
        """`host`, `port`: of the broker. `listens`: on this address."""
        self.rate = rate
        self.complaints = 0
        self._way = way
        self._target = host, port
        self._listener = socket.create_server((listens, 0))
        self.address = f"mqtt://{listens}:{self._listener.getsockname()[1]}"
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        for one in (self._listener, *self._open):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(self._target)
            except OSError:  # the broker is away
                near.close()
                continue
            self._open += [near, far]
            lock = threading.Lock()  # of what is written to the client, by both directions
            for relay in (self._upwards, self._downwards):
                threading.Thread(target=relay, args=(near, far, lock), daemon=True).start()

    def _upwards(self, near: socket.socket, far: socket.socket, lock: threading.Lock) -> None:
        taken: deque[float] = deque()
        stream = near.makefile("rb")
        with suppress(OSError, EOFError):
            while True:
                head, body = _packet(stream)
                if head[0] >> 4 in FREE:
                    far.sendall(head + body)
                    continue
                now = time.monotonic()
                while taken and taken[0] <= now - 1:
                    taken.popleft()
                taken.append(now)
                if not self.rate or len(taken) <= self.rate:
                    far.sendall(head + body)
                elif self._way == "disconnect":
                    self.complaints += 1
                    with lock:
                        near.sendall(RATE_TOO_HIGH)
                    break
                elif head[0] >> 4 == PUBLISH:
                    self.complaints += 1
                    with lock:
                        near.sendall(_refusal(body))
                else:
                    far.sendall(head + body)
        _hang_up(near, far)

    def _downwards(self, near: socket.socket, far: socket.socket, lock: threading.Lock) -> None:
        stream = far.makefile("rb")
        with suppress(OSError, EOFError):
            while True:
                head, body = _packet(stream)
                with lock:
                    near.sendall(head + body)
        _hang_up(near, far)


def _packet(stream: BinaryIO) -> tuple[bytes, bytes]:
    """The next packet: its type and length, and what follows. Raises EOFError."""
    head = stream.read(1)
    length = shift = 0
    while head:
        byte = stream.read(1)
        if not byte:
            break
        head += byte
        length |= (byte[0] & 127) << shift
        shift += 7
        if byte[0] < 128:
            body = stream.read(length)
            if len(body) == length:
                return head, body
            break
    raise EOFError


def _refusal(publish: bytes) -> bytes:
    """PUBACK of a PUBLISH at QoS 1, with the reason Quota exceeded."""
    topic = int.from_bytes(publish[:2], "big")
    return bytes((PUBACK << 4, 3)) + publish[2 + topic : 4 + topic] + bytes((QUOTA_EXCEEDED,))


def _hang_up(*ends: socket.socket) -> None:
    for end in ends:
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
