# SPDX-License-Identifier: Apache-2.0
"""The tools of a check: its own clients and topics, which leave nothing on the broker."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from splitee.mqtt.options import LinkOptions
from splitee.protocol.topics import Topics
from splitee_broker.checks.client import Client, ConnectionLost

CLEARING = 5.0  # seconds


class CheckContext:
    """At its end, clients are closed, their sessions ended, and retained messages cleared."""

    def __init__(
        self,
        link: LinkOptions,
        devices: int,
        token: str,
        seconds: float,
        progress: Callable[[str], None] = lambda _words: None,
    ) -> None:
        """`token`: identifies everything of this run. `progress`: receives the progress of a long check."""
        self.link = link
        self.devices = devices
        self.token = token
        self.progress = progress
        self.deadline = time.monotonic() + seconds
        self._clients: list[Client] = []
        self._retained: set[str] = set()

    def left(self) -> float:
        """Seconds until the check must have ended."""
        return self.deadline - time.monotonic()

    def topic(self, *levels: str) -> str:
        return "/".join((Topics(self.link.fleet).check(self.token), *levels))

    def retained(self, *levels: str) -> str:
        """A topic that is cleared at the end."""
        self._retained.add(self.topic(*levels))
        return self.topic(*levels)

    def client_id(self, name: str) -> str:
        return f"splitee-{self.link.fleet}-check-{self.token}-{name}"

    def connect(self, name: str, **options: Any) -> Client:
        """A client of this name, with the options of `Client`."""
        client = Client(self.link, self.client_id(name), self.deadline, **options)
        self._clients.append(client)
        return client.open()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        kept = {client.client_id for client in self._clients if client.session_expiry}
        for client in self._clients:
            client.close()
        self.deadline = time.monotonic() + CLEARING
        with contextlib.suppress(
            ConnectionLost
        ):  # a broker that is gone keeps its messages, and sessions end by themselves
            for client_id in kept:
                Client(self.link, client_id, self.deadline).open().close()
            if self._retained:
                cleaner = Client(self.link, self.client_id("cleaner"), self.deadline).open()
                for _ in cleaner.publish_all([(topic, b"") for topic in self._retained], retain=True):
                    pass
                cleaner.close()
