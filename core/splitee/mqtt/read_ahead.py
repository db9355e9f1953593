# SPDX-License-Identifier: Apache-2.0
"""A socket that reads ahead, because paho reads the first bytes of a packet one by one."""

from __future__ import annotations

import socket
import ssl

AHEAD = 1 << 16  # bytes


class ReadAhead:
    """The part of a socket's interface that paho uses. `recv` and `pending` belong to one thread."""

    def __init__(self, opened: socket.socket) -> None:
        self.socket = opened
        self._ahead = b""
        self._taken = 0
        self.send = opened.send
        self.fileno = opened.fileno
        self.setblocking = opened.setblocking
        self.close = opened.close

    def recv(self, size: int) -> bytes:
        """At most `size` bytes; as a socket's, it raises BlockingIOError when there is nothing to read."""
        if self._taken == len(self._ahead):
            if size >= AHEAD:
                return self.socket.recv(size)
            self._ahead, self._taken = self.socket.recv(AHEAD), 0
        data = self._ahead[self._taken : self._taken + size]
        self._taken += len(data)
        if self._taken == len(self._ahead):
            self._ahead, self._taken = b"", 0
        return data

    def pending(self) -> int:
        """Number of bytes already read from the system, which it no longer reports."""
        ahead = len(self._ahead) - self._taken
        return ahead + self.socket.pending() if isinstance(self.socket, ssl.SSLSocket) else ahead
