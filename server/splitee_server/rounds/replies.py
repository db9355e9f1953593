# SPDX-License-Identifier: Apache-2.0
"""The server's messages to one device: acknowledgements and assignments."""

from __future__ import annotations

from splitee_server.announcer import Announcer
from splitee_server.learning.fleet_model import FleetModel
from splitee_server.members.members import Members
from splitee_server.ranks.ranks import ALONE, Ranks
from splitee_server.rounds.phase import Phase

JUST_NOW = 10.0  # seconds: a device that has just connected receives newer retained messages anyway


class Replies:
    """Acknowledgements of the current phase, and assignments."""

    def __init__(
        self, model: FleetModel, members: Members, announcer: Announcer, ranks: Ranks = ALONE
    ) -> None:
        self._model = model
        self._members = members
        self._announce = announcer
        self._ranks = ranks

    def acknowledge(self, phase: Phase, device: str, *, resend: bool = False) -> None:
        """Acknowledge all batches below a step, and grant room for further ones."""
        if self._ranks.is_remote(device):
            self._ranks.acknowledge(device)
            return
        step, room = phase.next_step(device), phase.windows.room(device)
        self._announce.ack(device, phase.opened, step, room, resend=resend)

    def assign_part(self, phase: Phase, device: str, *, repeat_after: float = 0.0) -> None:
        """Send a device its task in a phase, and the number of batches that it may send at first."""
        part, room = phase.participants[device], phase.windows.room(device)
        self._announce.participation(device, phase.opened, part, room, repeat_after=repeat_after)

    def request_again(self, phase: Phase, device: str) -> bool:
        """Request messages of a device that may be lost; False: they were requested just now."""
        if not phase.may_request(device):
            return False
        self.acknowledge(phase, device, resend=True)
        return True

    def assign(self, device: str, *, repeat_after: float = 0.0) -> None:
        """The device's cut, its last commit, and whether the server holds its client network.

        Sends nothing to a dismissed device, nor if the same was sent less than `repeat_after`
        seconds ago.
        """
        if self._members.is_dismissed(device):
            return
        held, first = self._model.holds(device), self._model.initial_digest(device)
        fresh = self._model.is_fresh
        self._announce.assignment(
            self._members[device], held=held, first=first, fresh=fresh, repeat_after=repeat_after
        )

    def reply_to_sync(self, phase: Phase, device: str) -> None:
        """Send a device the server's position, because it may have missed earlier messages.

        Requests only what has not arrived: a device's messages come in order, so those before its
        request have been handled, or are lost.
        """
        if device in phase:  # first: a device that joins has its room before its assignment
            self.assign_part(phase, device, repeat_after=JUST_NOW)
        if device in self._members:
            self.assign(device, repeat_after=JUST_NOW)
        if device in phase:
            self.acknowledge(phase, device, resend=phase.lacks(device))
