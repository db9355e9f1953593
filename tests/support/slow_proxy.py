# SPDX-License-Identifier: Apache-2.0
"""A slow network with delay and loss in front of a broker, without root: a lost packet becomes a pause."""

from __future__ import annotations

import queue
import random
import socket
import threading
import time
from contextlib import suppress

from splitee.mqtt.address import BrokerAddress

CHUNK = 1400  # bytes
RETRANSMISSION = 0.2  # seconds by which a lost packet delays all later ones


class SlowProxy:
    """A TCP relay with `rate` bytes per second and `delay` seconds in each direction."""

    def __init__(self, target: BrokerAddress, rate: float, delay: float = 0.0, loss: float = 0.0) -> None:
        """`loss`: share of packet-sized chunks that are delayed as by a retransmission."""
        self._target = (target.host, target.port)
        self._rate, self._delay, self._loss = rate, delay, loss
        self._random = random.Random(1)
        self._listener = socket.create_server(("127.0.0.1", 0))
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            self._listener.setsockopt(socket.SOL_SOCKET, option, 1 << 13)  # larger buffers hide the rate
        self.address = BrokerAddress("127.0.0.1", self._listener.getsockname()[1])
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        for one in (self._listener, *self._open):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
                self._open += [near, far]
                for source, sink in ((near, far), (far, near)):
                    in_flight: queue.Queue[tuple[float, bytes]] = queue.Queue(64)
                    for step in (self._read, self._write):
                        threading.Thread(target=step, args=(source, sink, in_flight), daemon=True).start()

    def _read(
        self, source: socket.socket, _sink: socket.socket, in_flight: queue.Queue[tuple[float, bytes]]
    ) -> None:
        with suppress(OSError):
            while data := source.recv(CHUNK):
                time.sleep(len(data) / self._rate)
                if self._random.random() < self._loss:
                    time.sleep(RETRANSMISSION)
                in_flight.put((time.monotonic() + self._delay, data))
        in_flight.put((0.0, b""))

    def _write(
        self, _source: socket.socket, sink: socket.socket, in_flight: queue.Queue[tuple[float, bytes]]
    ) -> None:
        with suppress(OSError):
            while (item := in_flight.get())[1]:
                time.sleep(max(0.0, item[0] - time.monotonic()))
                sink.sendall(item[1])
            sink.shutdown(socket.SHUT_RDWR)
