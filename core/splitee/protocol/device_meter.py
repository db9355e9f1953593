# SPDX-License-Identifier: Apache-2.0
"""Counts the bytes that one device sends and receives, at its links."""

from __future__ import annotations

from functools import lru_cache, partial

from splitee.protocol.fields import Phase
from splitee.protocol.routes import find_route
from splitee.protocol.topics import Topics
from splitee.protocol.traffic import Direction, Tally, Traffic

TOPICS = 64  # whose routes are cached


class DeviceMeter:
    """A `Meter` for all links of a device's process.

    Attributes:
        phase: the current phase, which decides the purpose of batches.
    """

    def __init__(self, topics: Topics) -> None:
        self.phase: Phase = "train"
        self._find = lru_cache(TOPICS)(partial(find_route, topics))  # it is called for each message
        self._tally = Tally()

    def published(self, topic: str, payload: int, headers: int) -> None:
        self._count("up", topic, payload, headers)

    def received(self, topic: str, payload: int, headers: int) -> None:
        self._count("down", topic, payload, headers)

    def traffic(self) -> Traffic:
        """The bytes since the start of the process."""
        return self._tally.traffic()

    def _count(self, direction: Direction, topic: str, payload: int, headers: int) -> None:
        found = self._find(topic)
        purpose = "protocol" if found is None else found[0].purpose_in(self.phase)
        self._tally.add(direction, purpose, payload, headers)
