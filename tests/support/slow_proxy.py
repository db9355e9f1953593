# SPDX-License-Identifier: Apache-2.0
"""A slow and far network in front of a broker, without root: to TCP, what is lost looks like a pause."""

from __future__ import annotations

import queue
import random
import socket
import threading
import time
from contextlib import suppress

from splitee.mqtt.address import BrokerAddress

CHUNK = 1400  # bytes
RETRANSMISSION = 0.2  # seconds that a lost packet holds up those behind it


class SlowProxy:
    """A TCP relay that carries so many bytes a second each way, each after `delay` seconds.

    Attributes:
        carried: bytes that have come from clients.
    """

    def __init__(self, target: BrokerAddress, rate: float, delay: float = 0.0, loss: float = 0.0) -> None:
        """`loss`: of the chunks of a packet's size, which are held up as if they were sent again."""
        self._target = (target.host, target.port)
        self._rate, self._delay, self._loss = rate, delay, loss
        self._random = random.Random(1)
        self._listener = socket.create_server(("127.0.0.1", 0))
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            self._listener.setsockopt(socket.SOL_SOCKET, option, 1 << 13)  # or the system would hold it all
        self.address = BrokerAddress("127.0.0.1", self._listener.getsockname()[1])
        self._open: list[socket.socket] = []
        self.carried = 0
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
                    under_way: queue.Queue[tuple[float, bytes]] = queue.Queue(64)
                    for step in (self._take, self._hand_on):
                        threading.Thread(target=step, args=(source, sink, under_way), daemon=True).start()

    def _take(
        self, source: socket.socket, _sink: socket.socket, under_way: queue.Queue[tuple[float, bytes]]
    ) -> None:
        with suppress(OSError):
            while data := source.recv(CHUNK):
                self.carried += len(data)
                time.sleep(len(data) / self._rate)
                if self._random.random() < self._loss:
                    time.sleep(RETRANSMISSION)
                under_way.put((time.monotonic() + self._delay, data))
        under_way.put((0.0, b""))

    def _hand_on(
        self, _source: socket.socket, sink: socket.socket, under_way: queue.Queue[tuple[float, bytes]]
    ) -> None:
        with suppress(OSError):
            while (item := under_way.get())[1]:
                time.sleep(max(0.0, item[0] - time.monotonic()))
                sink.sendall(item[1])
            sink.shutdown(socket.SHUT_RDWR)
