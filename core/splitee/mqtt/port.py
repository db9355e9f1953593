# SPDX-License-Identifier: Apache-2.0
"""The interface of a link for the layers above; `Link` implements it."""

from __future__ import annotations

from typing import Protocol

from splitee.mqtt.events import Event
from splitee.mqtt.meter import Meter


class Port(Protocol):
    """Publishes and receives messages. `link.Link` documents each method."""

    @property
    def connected(self) -> bool: ...

    @property
    def max_packet(self) -> int:
        """Bytes of the largest payload."""

    @property
    def part_size(self) -> int:
        """Bytes that the parts of a larger message should have."""

    meter: Meter | None
    """Counts each message from now on; None: messages are not counted."""

    def subscribe(self, *filters: str) -> None: ...

    def unsubscribe(self, *filters: str) -> None: ...

    def publish(
        self,
        topic: str,
        payload: bytes | memoryview | bytearray,
        *,
        retain: bool = False,
        expiry: int | None = None,
        response_topic: str | None = None,
        correlation: bytes | None = None,
    ) -> bool: ...

    def receive(self, timeout: float | None) -> Event | None: ...
