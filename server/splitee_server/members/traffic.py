# SPDX-License-Identifier: Apache-2.0
"""What travels between the server and each device of a run, by purpose, over all processes of the server."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from splitee.protocol.fields import Name, Phase
from splitee.protocol.routes import find
from splitee.protocol.topics import Topics
from splitee.protocol.traffic import ByPurpose, Direction, Tally, Traffic

DEVICES = 10_000  # ids come from topics that anyone may write


class StoredTraffic(msgspec.Struct, frozen=True, omit_defaults=True):
    """As it is kept beside the commits. `to_all`: what every device may read, once for each message."""

    run: str
    devices: dict[Name, Traffic] = {}
    to_all: ByPurpose = ByPurpose()


class FleetTraffic:
    """A `Meter` for the server's link: the messages of each device's topics, and those to all devices.

    A message counts whenever the link moves it: what is sent again, of a round too that was begun anew,
    counts again. What a killed process had counted since the last `stored`, in a round that had not been
    evaluated, is lost.

    Attributes:
        phase: that is under way; it tells batches of training from those of evaluation.
    """

    def __init__(
        self,
        topics: Topics,
        run: str,
        earlier: StoredTraffic | None = None,
        elsewhere: Callable[[str], Traffic] = lambda _device: Traffic(),
    ) -> None:
        """`earlier`: what processes before this one have counted; passed over where it is of another run.

        `elsewhere`: what links of other ranks of this server have moved of a device's messages.
        """
        if earlier is None or earlier.run != run:
            earlier = StoredTraffic(run)
        self.phase: Phase = "train"
        self._topics = topics
        self._run = run
        self._elsewhere = elsewhere
        self._devices = {device: Tally(traffic) for device, traffic in earlier.devices.items()}
        self._to_all = Tally(Traffic(down=earlier.to_all))
        self._link = Tally()  # of this process, whatever the messages are of

    def stored(self, devices: Iterable[str]) -> StoredTraffic:
        """What is to be kept, of these devices."""
        return StoredTraffic(self._run, {device: self.of(device) for device in devices}, self.to_all())

    def published(self, topic: str, payload: int, headers: int) -> None:
        self._count("down", topic, payload, headers)

    def received(self, topic: str, payload: int, headers: int) -> None:
        self._count("up", topic, payload, headers)

    def of(self, device: str) -> Traffic:
        """Up: what has come from a device; down: what was sent to it alone."""
        tally = self._devices.get(device)
        return (Traffic() if tally is None else tally.traffic()) + self._elsewhere(device)

    def to_all(self) -> ByPurpose:
        """What was sent for all devices to read, each message counted once."""
        return self._to_all.traffic().down

    def moved(self) -> Traffic:
        """All that the link has received (up) and sent (down) in this process."""
        return self._link.traffic()

    def _count(self, direction: Direction, topic: str, payload: int, headers: int) -> None:
        found = find(self._topics, topic)
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
