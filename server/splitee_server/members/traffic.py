# SPDX-License-Identifier: Apache-2.0
"""Traffic between the server and each device of a run, by purpose, over all processes of the server."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from splitee.protocol.fields import Name, Phase
from splitee.protocol.routes import find_route
from splitee.protocol.topics import Topics
from splitee.protocol.traffic import ByPurpose, Direction, Tally, Traffic

DEVICES = 10_000  # at most so many are counted: ids come from topics that anyone may write


class StoredTraffic(msgspec.Struct, frozen=True, omit_defaults=True):
    """Traffic as it is saved beside the commits. `to_all`: messages to all devices, each counted once."""

    run: str
    devices: dict[Name, Traffic] = {}
    to_all: ByPurpose = ByPurpose()


class FleetTraffic:
    """A `Meter` for the server's link: the messages of each device's topics, and those to all devices.

    A message counts each time the link moves it: messages that are sent again, also those of a round that
    restarts, count again. If the process is killed, its counts since the last `stored`, of a round that had
    not been evaluated, are lost.

    Attributes:
        phase: the current one; it distinguishes batches of training from those of evaluation.
    """

    def __init__(
        self,
        topics: Topics,
        run: str,
        earlier: StoredTraffic | None = None,
        remote: Callable[[str], Traffic] = lambda _device: Traffic(),
    ) -> None:
        """`earlier`: counts of earlier processes; ignored if they are of another run.

        `remote`: a device's traffic on the links of this server's other ranks.
        """
        if earlier is None or earlier.run != run:
            earlier = StoredTraffic(run)
        self.phase: Phase = "train"
        self._topics = topics
        self._run = run
        self._remote = remote
        self._devices = {device: Tally(traffic) for device, traffic in earlier.devices.items()}
        self._to_all = Tally(Traffic(down=earlier.to_all))
        self._link = Tally()  # all messages of this process

    def stored(self, devices: Iterable[str]) -> StoredTraffic:
        """The traffic of these devices, to be saved."""
        return StoredTraffic(self._run, {device: self.of(device) for device in devices}, self.to_all())

    def published(self, topic: str, payload: int, headers: int) -> None:
        self._count("down", topic, payload, headers)

    def received(self, topic: str, payload: int, headers: int) -> None:
        self._count("up", topic, payload, headers)

    def of(self, device: str) -> Traffic:
        """Up: what has come from a device; down: what was sent to it alone."""
        tally = self._devices.get(device)
        return (Traffic() if tally is None else tally.traffic()) + self._remote(device)

    def to_all(self) -> ByPurpose:
        """What was sent for all devices to read, each message counted once."""
        return self._to_all.traffic().down

    def moved(self) -> Traffic:
        """All that the link has received (up) and sent (down) in this process."""
        return self._link.traffic()

    def _count(self, direction: Direction, topic: str, payload: int, headers: int) -> None:
        found = find_route(self._topics, topic)
        purpose = "protocol" if found is None else found[0].purpose_in(self.phase)
        self._link.add(direction, purpose, payload, headers)
        if found is None:
            return
        route, device = found
        if (route.sender == "device") != (direction == "up"):
            return
        if direction == "down" and "device" not in route.readers:
            return
        if not route.of_device:
            self._to_all.add(direction, purpose, payload, headers)
        elif device in self._devices or len(self._devices) < DEVICES:
            self._devices.setdefault(device, Tally()).add(direction, purpose, payload, headers)
