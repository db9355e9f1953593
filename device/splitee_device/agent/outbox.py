# SPDX-License-Identifier: Apache-2.0
"""The window: batches that were published and not yet acknowledged by the server."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from splitee.mqtt.port import Port
from splitee.protocol.fields import Phase
from splitee.protocol.parts import publish_in_parts
from splitee.protocol.rounds import Ack, RoundOpen
from splitee.protocol.run_spec import RunSpec


class Outbox:
    """Keeps at most the window's batches and bytes, and sends them again when the server requests it."""

    def __init__(
        self,
        port: Port,
        topic: str,
        spec: RunSpec,
        opened: RoundOpen,
        phase: Phase,
        room: int,
        meanwhile: Callable[[], object] = lambda: None,
    ) -> None:
        """`room`: batches that may be unacknowledged, until an acknowledgement gives another number.

        `meanwhile` is called before each part of a batch that is published in parts.
        """
        self._port = port
        self._meanwhile = meanwhile
        self._topic = topic
        self._spec = spec
        self._opened = opened
        self._phase = phase
        self._room = room
        self._acknowledged = 0
        self._waiting: deque[tuple[int, bytes]] = deque()
        self._waiting_bytes = 0
        self.published = 0  # bytes, each batch counted once

    @property
    def empty(self) -> bool:
        return not self._waiting

    @property
    def full(self) -> bool:
        if len(self._waiting) >= min(self._spec.window, self._room):
            return True
        return bool(self._waiting) and self._waiting_bytes >= self._spec.window_bytes

    def needs(self, step: int) -> bool:
        """False if the server already has this batch, from before this process started."""
        return step >= self._acknowledged

    def add(self, step: int, payload: bytes) -> None:
        """Publish a batch; it is kept until it is acknowledged."""
        self._waiting.append((step, payload))
        self._waiting_bytes += len(payload)
        self.published += len(payload)
        self._publish(payload)

    def acknowledge(self, ack: Ack) -> None:
        """Make room, and resend what the server may have lost. Ignores acknowledgements of other phases."""
        opened = self._opened
        current = opened.run, opened.round, opened.attempt, self._phase
        if (ack.run, ack.round, ack.attempt, ack.phase) != current:
            return
        self._room = ack.room
        self._acknowledged = max(self._acknowledged, ack.step)
        while self._waiting and self._waiting[0][0] < self._acknowledged:
            self._waiting_bytes -= len(self._waiting.popleft()[1])
        if ack.resend:
            for _, payload in self._waiting:
                self._publish(payload)

    def _publish(self, payload: bytes) -> None:
        publish_in_parts(self._port, self._topic, payload, meanwhile=self._meanwhile)
