# SPDX-License-Identifier: Apache-2.0
"""Does a server's work on releases in another process, as long as that runs."""

from __future__ import annotations

from splitee.mqtt.events import Connected, Event, Message
from splitee.mqtt.port import Port
from splitee.protocol.gate import Gate
from splitee.protocol.topics import Topics
from splitee_server.release import rollouts
from splitee_server.release.releases import Releases
from splitee_server.release.rollout_store import RolloutStore


class LocalRollouts:
    """What `splitee release` does if no server runs.

    Attributes:
        releases: what it keeps.
    """

    def __init__(self, port: Port, topics: Topics, store: RolloutStore) -> None:
        self._port = port
        self._gate = Gate(topics, rollouts.ROUTES)
        self.releases = Releases(port, topics, store)
        port.subscribe(*self._gate.filters)

    def receive(self, timeout: float) -> Event | None:
        """The next event within `timeout` seconds, after the releases have handled it."""
        event = self._port.receive(timeout)
        if isinstance(event, Message):
            received = self._gate.read(event)
            if received is not None:
                self._gate.apply(received, self.releases.handle)
        elif isinstance(event, Connected):
            self.releases.rollouts.republish()
        self.releases.rollouts.tick()
        return event

    def close(self) -> None:
        """Publish what is still to be published."""
        self.releases.rollouts.tick(at_once=True)
