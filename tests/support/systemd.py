# SPDX-License-Identifier: Apache-2.0
"""systemd as a service sees it: the notifications that it receives, and when its watchdog would expire."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path
from types import TracebackType

MICROSECOND = 1e-6


class FakeSystemd:
    """Receives the notifications of one service, whose WatchdogSec is `watchdog` seconds.

    Attributes:
        states: all received notifications, in order.
        expired: gaps between notifications, in seconds, that were longer than the watchdog's limit then.
        slowest: the longest gap in seconds.
    """

    def __init__(self, path: Path, watchdog: float) -> None:
        self.states: list[str] = []
        self.expired: list[float] = []
        self.slowest = 0.0
        self._path = path
        self._watchdog = watchdog
        self._limit = watchdog
        self._notified: float | None = None  # time of the last notification; None: not ready yet, or stopping
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._thread = threading.Thread(target=self._listen, daemon=True)

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables of the service."""
        return {"NOTIFY_SOCKET": str(self._path), "WATCHDOG_USEC": str(round(self._watchdog / MICROSECOND))}

    def __enter__(self) -> FakeSystemd:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"", str(self._path))
        self._thread.join()
        self._socket.close()

    def _listen(self) -> None:
        while message := self._socket.recv(65536):
            for state in message.decode().splitlines():
                self.states.append(state)
                self._handle(state, time.monotonic())

    def _handle(self, state: str, now: float) -> None:
        name, _, value = state.partition("=")
        if name == "STOPPING":
            self._check_gap(now)
            self._notified = None
        elif name == "READY":
            self._notified = now
        elif name in ("WATCHDOG", "WATCHDOG_USEC") and self._notified is not None:
            self._check_gap(now)
            self._notified = now
            if name == "WATCHDOG_USEC":
                self._limit = int(value) * MICROSECOND

    def _check_gap(self, now: float) -> None:
        if self._notified is not None:
            gap = now - self._notified
            self.slowest = max(self.slowest, gap)
            if gap > self._limit:
                self.expired.append(gap)
