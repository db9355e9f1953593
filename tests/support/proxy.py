# SPDX-License-Identifier: Apache-2.0
"""A network between a client and a broker that a test can cut."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

from splitee.mqtt.address import BrokerAddress


class Proxy:
    """A TCP relay to a broker; it can cut its connections or drop what it receives."""

    def __init__(self, target: BrokerAddress) -> None:
        self._target = (target.host, target.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = BrokerAddress("127.0.0.1", self._listener.getsockname()[1])
        self._open: list[socket.socket] = []
        self.blocked = threading.Event()
        self.refused = 0  # connections that were refused while it was blocked
        self.swallows = threading.Event()  # while set, data is dropped and connections stay open
        self.sent: bytearray | None = None  # bytes from clients, if a test records them
        self.received: bytearray | None = None  # bytes to clients, likewise
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self.blocked.is_set():
                self.refused += 1
                near.close()
                continue
            far = socket.create_connection(self._target)
            self._open += [near, far]
            for source, sink, captured in ((near, far, self.sent), (far, near, self.received)):
                threading.Thread(target=self._relay, args=(source, sink, captured), daemon=True).start()

    def _relay(self, source: socket.socket, sink: socket.socket, captured: bytearray | None) -> None:
        try:
            while data := source.recv(65536):
                if captured is not None:
                    captured += data
                if not self.swallows.is_set():
                    sink.sendall(data)
        except OSError:
            pass

    def cut(self) -> None:
        for connection in self._open:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        self._open.clear()

    def close(self) -> None:
        self._listener.close()
        self.cut()
