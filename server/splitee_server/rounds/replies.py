# SPDX-License-Identifier: Apache-2.0
"""What the server tells one device: how far it is with its batches, and where the device stands."""

from __future__ import annotations

from math import prod

from splitee.protocol.run_spec import RunSpec
from splitee_server.announcer import Announcer
from splitee_server.learning.fleet_model import FleetModel
from splitee_server.members.members import Members
from splitee_server.ranks.ranks import ALONE, Ranks
from splitee_server.rounds.phase import Phase
from splitee_server.rounds.policy import Policy


class Replies:
    """Acknowledgements of the phase under way, and assignments."""

    def __init__(
        self,
        spec: RunSpec,
        model: FleetModel,
        members: Members,
        announcer: Announcer,
        policy: Policy,
        ranks: Ranks = ALONE,
    ) -> None:
        self._spec = spec
        self._model = model
        self._members = members
        self._announce = announcer
        self._policy = policy
        self._ranks = ranks

    def acknowledge(self, phase: Phase, device: str, *, resend: bool = False) -> None:
        """Everything below a step is trained; so many batches may follow."""
        if self._ranks.serves(device):
            self._ranks.acknowledge(device)
            return
        step, room = phase.next_step(device), self._room(phase, device)
        self._announce.ack(device, phase.opened, step, room, resend=resend)

    def assign(self, device: str) -> None:
        """The device's cut, its last commit, and whether the server holds its client network.

        Nothing is said to a device that was dismissed.
        """
        if self._members.is_dismissed(device):
            return
        held, first = self._model.holds(device), self._model.first_digest(device)
        fresh = self._model.is_fresh
        self._announce.assignment(self._members[device], held=held, first=first, fresh=fresh)

    def answer_sync(self, phase: Phase, device: str) -> None:
        """Where the server stands with a device, which may have missed the last word."""
        if device in phase:
            self.acknowledge(phase, device, resend=True)
        elif device in self._members:
            self.assign(device)

    def _room(self, phase: Phase, device: str) -> int:
        cut = phase.opened.participants[device].cut
        batch_bytes = 4 * self._spec.batch_size * prod(self._model.feature_shape(cut))
        return self._policy.room(self._spec.window, batch_bytes, len(phase.opened.participants))
