# SPDX-License-Identifier: Apache-2.0
"""The other ranks of a server as the one that leads sees them; a server by itself has none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import TYPE_CHECKING

from msgspec.structs import replace

from splitee.errors import Reason
from splitee.protocol.traffic import Traffic
from splitee_server.rounds.progress import Trained

if TYPE_CHECKING:
    from splitee.protocol.run_spec import RunSpec
    from splitee_server.learning.fleet_model import FleetModel
    from splitee_server.rounds.phase import Phase


class Ranks:
    """None: all devices are this process's own. `Leader` has the others.

    Attributes:
        idle: seconds that this process may wait for an event without a look at the others.
        listens_by_name: devices' features are subscribed to by `open`, and not by a filter for all.
    """

    idle = float("inf")
    listens_by_name = False

    def serves(self, device: str) -> bool:
        """Whether another rank takes a device's batches in the phase under way."""
        return False

    def deal(self, devices: Collection[str]) -> frozenset[str]:
        """Deal the participants of a phase that is to open; those whose batches go to other ranks."""
        return frozenset()

    def open(self, phase: Phase, spec: RunSpec, model: FleetModel) -> None:
        """Open a phase, whose participants were dealt, at the other ranks; it is announced after that."""

    def follow(self, phase: Phase, model: FleetModel) -> bool:
        """Take in how far the others are, and end a joint step; whether a batch could not be worked on."""
        return False

    def acknowledge(self, device: str) -> None:
        """Have a device that another rank serves told again how far it is."""

    def go_on_without(self, devices: tuple[str, ...]) -> None:
        """These take no part in the phase any longer."""

    def collect(self, phase: Phase, model: FleetModel) -> None:
        """The phase is over: have here what the others have trained, observed or evaluated."""

    def models_have_changed(self) -> None:
        """Trunks are no longer what the others hold."""

    def with_trained(self, own: Trained) -> Trained:
        """What was trained here, and elsewhere."""
        return replace(own)

    def traffic_of(self, device: str) -> Traffic:
        """What the others' links have moved of a device's messages."""
        return Traffic()

    def take_refused(self) -> Counter[tuple[str, Reason]]:
        """Messages that the others have refused since the last call, by device and reason."""
        return Counter()

    def take_duplicates(self) -> int:
        """Batches that came twice to the others, since the last call."""
        return 0

    def end(self) -> None:
        """The run is over; returns when the others have heard of it."""

    def leave(self) -> None:
        """This process was asked to stop before the run is over."""


ALONE = Ranks()
