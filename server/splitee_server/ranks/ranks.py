# SPDX-License-Identifier: Apache-2.0
"""The other ranks of a server, as rank 0 sees them; a single server has none."""

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
    """No other ranks: this process serves all devices. The subclass `Leader` has others.

    Attributes:
        idle: seconds that this process may wait for an event before it checks the others.
        subscribes_by_device: `open` subscribes to features by device, in place of one filter for all devices.
    """

    idle = float("inf")
    subscribes_by_device = False

    def is_remote(self, device: str) -> bool:
        """Whether another rank takes a device's batches in the phase under way."""
        return False

    def assign_ranks(self, devices: Collection[str]) -> frozenset[str]:
        """Divide the participants of a new phase among ranks; returns those of the other ranks."""
        return frozenset()

    def open(self, phase: Phase, spec: RunSpec, model: FleetModel) -> None:
        """Open a phase at the other ranks, after `assign_ranks` and before the phase is announced."""

    def follow(self, phase: Phase, model: FleetModel) -> bool:
        """Read the others' progress, and end a joint step; True: a batch could not be worked on."""
        return False

    def acknowledge(self, device: str) -> None:
        """Have another rank repeat its acknowledgement of a device."""

    def go_on_without(self, devices: tuple[str, ...]) -> None:
        """The phase goes on without these devices."""

    def collect(self, phase: Phase, model: FleetModel) -> None:
        """The phase is over: collect what the others have trained, observed or evaluated."""

    def models_have_changed(self) -> None:
        """The trunks have changed since the others received them."""

    def with_trained(self, own: Trained) -> Trained:
        """What was trained by this process, `own`, and by the others."""
        return replace(own)

    def traffic_of(self, device: str) -> Traffic:
        """A device's traffic on the others' links."""
        return Traffic()

    def take_refused(self) -> Counter[tuple[str, Reason]]:
        """Messages that the others have refused since the last call, by device and reason."""
        return Counter()

    def take_duplicates(self) -> int:
        """Number of batches that arrived twice at the others, since the last call."""
        return 0

    def end(self) -> None:
        """The run is over; returns when the others have confirmed that."""

    def leave(self) -> None:
        """This process received a signal to stop before the run is over."""


ALONE = Ranks()
