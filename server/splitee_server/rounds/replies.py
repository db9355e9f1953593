# SPDX-License-Identifier: Apache-2.0
"""What the server tells one device: how far it is with its batches, and where the device stands."""

from __future__ import annotations

from splitee_server.announcer import Announcer
from splitee_server.learning.fleet_model import FleetModel
from splitee_server.members.members import Members
from splitee_server.ranks.ranks import ALONE, Ranks
from splitee_server.rounds.phase import Phase

JUST_NOW = 10.0  # seconds: what is retained, and was said since, comes to who connects by itself


class Replies:
    """Acknowledgements of the phase under way, and assignments."""

    def __init__(
        self, model: FleetModel, members: Members, announcer: Announcer, ranks: Ranks = ALONE
    ) -> None:
        self._model = model
        self._members = members
        self._announce = announcer
        self._ranks = ranks

    def acknowledge(self, phase: Phase, device: str, *, resend: bool = False) -> None:
        """Everything below a step is trained; so many batches may follow."""
        if self._ranks.serves(device):
            self._ranks.acknowledge(device)
            return
        step, room = phase.next_step(device), phase.windows.room(device)
        self._announce.ack(device, phase.opened, step, room, resend=resend)

    def assign_part(self, phase: Phase, device: str, *, known_for: float = 0.0) -> None:
        """What the device does in a phase, and how many batches it may have under way at first."""
        part, room = phase.participants[device], phase.windows.room(device)
        self._announce.participation(device, phase.opened, part, room, known_for=known_for)

    def ask_again(self, phase: Phase, device: str) -> bool:
        """What the device has sent may be lost; False: it was asked just now."""
        if not phase.may_ask(device):
            return False
        self.acknowledge(phase, device, resend=True)
        return True

    def assign(self, device: str, *, known_for: float = 0.0) -> None:
        """The device's cut, its last commit, and whether the server holds its client network.

        Nothing is said to a device that was dismissed, nor where the same was said less than `known_for`
        seconds ago.
        """
        if self._members.is_dismissed(device):
            return
        held, first = self._model.holds(device), self._model.first_digest(device)
        fresh = self._model.is_fresh
        self._announce.assignment(
            self._members[device], held=held, first=first, fresh=fresh, known_for=known_for
        )

    def answer_sync(self, phase: Phase, device: str) -> None:
        """Where the server stands with a device, which may have missed the last word.

        Only what is not here is asked for: a device's messages come in their order, so those before its
        request have been handled, or are lost.
        """
        if device in phase:  # first: who joins has its present room before it is taken in
            self.assign_part(phase, device, known_for=JUST_NOW)
        if device in self._members:
            self.assign(device, known_for=JUST_NOW)
        if device in phase:
            self.acknowledge(phase, device, resend=phase.lacks(device))
