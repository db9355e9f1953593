# SPDX-License-Identifier: Apache-2.0
"""A network between a client and a broker that can be cut."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

from splitee.mqtt.address import BrokerAddress


class Proxy:
    """A TCP relay that can cut its connections, or become a black hole, before a broker that lives on."""

    def __init__(self, target: BrokerAddress) -> None:
        self._target = (target.host, target.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = BrokerAddress("127.0.0.1", self._listener.getsockname()[1])
        self._open: list[socket.socket] = []
        self.blocked = threading.Event()
        self.refused = 0  # connections, while it was blocked
        self.swallows = threading.Event()  # what is sent vanishes, and nobody hangs up
        self.sent: bytearray | None = None  # by clients, where somebody listens
        self.received: bytearray | None = None  # by them
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
