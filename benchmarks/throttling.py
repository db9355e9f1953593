# SPDX-License-Identifier: Apache-2.0
"""A proxy that limits the rate of each client's packets to a broker, like managed brokers."""

from __future__ import annotations

import socket
import threading
import time
from collections import deque
from contextlib import suppress
from typing import BinaryIO, Literal

Way = Literal["disconnect", "refuse"]

PUBLISH, PUBACK, PINGREQ = 3, 4, 12  # types of packets, in the upper half of their first byte
FREE = {PUBACK, PINGREQ}  # always forwarded, and not counted
RATE_TOO_HIGH = bytes((0xE0, 2, 0x96, 0))  # DISCONNECT, "Message rate too high", no properties
QUOTA_EXCEEDED = 0x97


class ThrottlingProxy:
    """Forwards at most `rate` packets per second from each client.

    A further packet disconnects the client, or is refused with a PUBACK if it is a PUBLISH, as `way` says.

    Attributes:
        address: where clients connect, mqtt://HOST:PORT.
        complaints: number of disconnections and refusals.
        rate: packets per second, counted over the last second; 0: no limit. It may be changed.
    """

    def __init__(self, host: str, port: int, rate: int, way: Way, *, listens: str = "127.0.0.1") -> None:
        """`host`, `port`: of the broker. `rate`, `way`: see above. `listens`: address to listen on."""
        self.rate = rate
        self.complaints = 0
        self._way = way
        self._target = host, port
        self._listener = socket.create_server((listens, 0))
        self.address = f"mqtt://{listens}:{self._listener.getsockname()[1]}"
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        for end in (self._listener, *self._open):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(self._target)
            except OSError:  # the broker is not running
                near.close()
                continue
            self._open += [near, far]
            lock = threading.Lock()  # for writes to the client, by both threads
            for relay in (self._upwards, self._downwards):
                threading.Thread(target=relay, args=(near, far, lock), daemon=True).start()

    def _upwards(self, near: socket.socket, far: socket.socket, lock: threading.Lock) -> None:
        times: deque[float] = deque()
        stream = near.makefile("rb")
        with suppress(OSError, EOFError):
            while True:
                head, body = _packet(stream)
                if head[0] >> 4 in FREE:
                    far.sendall(head + body)
                    continue
                now = time.monotonic()
                while times and times[0] <= now - 1:
                    times.popleft()
                times.append(now)
                if not self.rate or len(times) <= self.rate:
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
    """The next packet: its fixed header, and its body. Raises EOFError at the end of the stream."""
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
    """The PUBACK with reason "Quota exceeded" for the body of a PUBLISH at QoS 1."""
    length = int.from_bytes(publish[:2], "big")
    return bytes((PUBACK << 4, 3)) + publish[2 + length : 4 + length] + bytes((QUOTA_EXCEEDED,))


def _hang_up(*ends: socket.socket) -> None:
    for end in ends:
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
