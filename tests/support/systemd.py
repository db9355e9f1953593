# SPDX-License-Identifier: Apache-2.0
"""systemd as a process sees it that is to notify it: what it is told, and if its watchdog would end it."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path
from types import TracebackType

MICROSECOND = 1e-6


class FakeSystemd:
    """Listens like systemd to one service, whose WatchdogSec is `watchdog`.

    Attributes:
        states: all that it was told, in its order.
        expired: gaps in seconds that were longer than the watchdog waited then.
        slowest: the longest gap in seconds.
    """

    def __init__(self, path: Path, watchdog: float) -> None:
        self.states: list[str] = []
        self.expired: list[float] = []
        self.slowest = 0.0
        self._path = path
        self._usual = watchdog
        self._waits = watchdog
        self._fed: float | None = None  # when it was fed last; None: it is not ready yet, or stopping
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._thread = threading.Thread(target=self._listen, daemon=True)

    @property
    def environment(self) -> dict[str, str]:
        """Of the service."""
        return {"NOTIFY_SOCKET": str(self._path), "WATCHDOG_USEC": str(round(self._usual / MICROSECOND))}

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
                self._take(state, time.monotonic())

    def _take(self, state: str, now: float) -> None:
        name, _, value = state.partition("=")
        if name == "STOPPING":
            self._check_gap(now)
            self._fed = None
        elif name == "READY":
            self._fed = now
        elif name in ("WATCHDOG", "WATCHDOG_USEC") and self._fed is not None:
            self._check_gap(now)
            self._fed = now
            if name == "WATCHDOG_USEC":
                self._waits = int(value) * MICROSECOND

    def _check_gap(self, now: float) -> None:
        if self._fed is not None:
            gap = now - self._fed
            self.slowest = max(self.slowest, gap)
            if gap > self._waits:
                self.expired.append(gap)
