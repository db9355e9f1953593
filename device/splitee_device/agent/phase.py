# SPDX-License-Identifier: Apache-2.0
"""The phase of a round that a device is in: what it sends, and whether the phase still counts."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from splitee.errors import Unwinding
from splitee.mqtt.port import Port
from splitee.protocol import routes
from splitee.protocol.parts import publish_in_parts
from splitee.protocol.rounds import Ack, Participant, RoundDone, RoundOpen
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.topics import Topics
from splitee_device.agent.last_received import LastReceived, phase_key
from splitee_device.agent.outbox import Outbox


class Superseded(Unwinding):
    """The server has opened another round, or this one again; work under way no longer counts."""


class ActivePhase:
    """One opening of one phase, from the device's side."""

    def __init__(
        self,
        port: Port,
        topics: Topics,
        device: str,
        spec: RunSpec,
        opened: RoundOpen,
        part: Participant,
        room: int,
        last_ack: Ack | None,
        meanwhile: Callable[[], object] = lambda: None,
    ) -> None:
        """`part`: what the device does in it. `room`: batches that may be unacknowledged at first.

        `last_ack`: the latest that the device received; it may show how much of this phase the server has.
        `meanwhile` is called during publishing, which takes minutes over a slow link.
        """
        self._port = port
        self._meanwhile = meanwhile
        self._weights_topic = routes.WEIGHTS.topic(topics, device)
        self._done_topic = routes.ROUND_DONE.topic(topics, device)
        self._done: RoundDone | None = None
        self._weights: Callable[[], Iterable[bytes]] = tuple
        self.opened = opened
        self.kind = opened.batches
        self.part = part
        self.waited = 0.0  # seconds spent waiting for room in the server's window
        features = routes.FEATURES.topic(topics, device)
        self.outbox = Outbox(port, features, spec, opened, self.kind, room, meanwhile)
        if last_ack is not None:
            self.outbox.acknowledge(last_ack)

    def on_ack(self, ack: Ack) -> None:
        """Make room for more batches, and resend what the server may have lost."""
        self.outbox.acknowledge(ack)
        if ack.resend:
            self.publish_done()

    def finish(self, done: RoundDone, weights: Callable[[], Iterable[bytes]]) -> None:
        """Publish round-done, and publish it again from now on whenever the server may have missed it.

        Args:
            weights: makes the messages with the client network, if the server has requested it.
        """
        self._done, self._weights = done, weights
        self.publish_done()

    def publish_done(self) -> None:
        """Publish the weights and then round-done; before the round is trained, publish nothing."""
        if self._done is None:
            return
        for payload in self._weights():
            publish_in_parts(self._port, self._weights_topic, payload, meanwhile=self._meanwhile)
        publish_in_parts(self._port, self._done_topic, self._done.encode())

    def is_superseded(self, last_received: LastReceived) -> bool:
        """Whether later messages of the server end this phase.

        Before round-done, any other phase ends it, and so does this one if it drops the device. After
        round-done only a new attempt does: the server goes on to the next phase, and the commit is still to
        come.
        """
        current = last_received.round
        if current is None:
            return False
        if self._done is not None:
            return current.attempt != self.opened.attempt
        return phase_key(current) != phase_key(self.opened) or last_received.is_dropped_from(self.opened)
