# SPDX-License-Identifier: Apache-2.0
"""What a device has received from its fleet: the latest message of each kind, and what follows from them."""

from __future__ import annotations

from enum import Enum, auto

from splitee.protocol.fleet import ServerStatus
from splitee.protocol.rounds import Ack, Assignment, Participant, Participation, RoundOpen
from splitee.protocol.run_spec import RunSpec

ENDED = ("release", "finished")  # phases of a run that trains no more
IN_ORDER = ("train", "statistics", "evaluate", *ENDED)  # the phases that have the same round number

PhaseKey = tuple[str, int, int, str]


def phase_key(opened: RoundOpen | Participation) -> PhaseKey:
    """What distinguishes one opening of one phase from every other."""
    return opened.run, opened.attempt, opened.round, opened.phase


class Outcome(Enum):
    """What became of a round that a device has trained."""

    PENDING = auto()
    COMMITTED = auto()  # with this device's weights
    COMMITTED_WITHOUT = auto()  # without this device's weights


class LastReceived:
    """The state that the server's messages describe, for one process of one device."""

    def __init__(self, instance: int, now: float) -> None:
        self._instance = instance
        self.spec: RunSpec | None = None
        self.round: RoundOpen | None = None
        self.participation: Participation | None = None
        self.assignment: Assignment | None = None
        self.ack: Ack | None = None
        self.server: ServerStatus | None = None
        self.last_seen = now  # when the server last sent a sign of life
        self.last_reply = now  # when it last sent this device a message, or opened a phase

    def add(
        self, message: RunSpec | RoundOpen | Participation | Assignment | Ack | ServerStatus, now: float
    ) -> None:
        """Record a message. One that may have been retained long ago is no sign that the server lives."""
        match message:
            case RunSpec():
                self.spec = message
            case Assignment():
                self.assignment, self.last_reply = message, now
            case Participation():
                self.participation, self.last_reply = message, now
            case RoundOpen():
                self.round, self.last_seen, self.last_reply = message, now, now
            case Ack():
                self.ack, self.last_seen, self.last_reply = message, now, now
            case ServerStatus():
                self.server = message
                if message.state == "online":
                    self.last_seen = now

    @property
    def is_joined(self) -> bool:
        """Whether the server has taken this process of the device into the run."""
        last, spec = self.assignment, self.spec
        if last is None or spec is None:
            return False
        return (last.run, last.instance) == (spec.run, self._instance)

    @property
    def is_trained(self) -> bool:
        """Whether the run trains no more."""
        return self._is_at(ENDED)

    @property
    def is_finished(self) -> bool:
        """Whether the run is over, and its models are released."""
        return self._is_at(("finished",))

    @property
    def is_server_offline(self) -> bool:
        """Whether no server is online, as far as this device knows."""
        return self.server is None or self.server.state == "offline"

    def waiting_reason(self) -> str:
        """Why nothing comes, as far as the server has said why; otherwise ""."""
        if self.server is None or self.is_server_offline:
            return "the server is offline"
        if self.server.waiting_for:
            return "the server waits for " + ", ".join(self.server.waiting_for[:5])
        return ""

    def next_phase(self, run: str, done: PhaseKey | None) -> RoundOpen | None:
        """The open phase, if this device takes part in it, or the end of the run; otherwise None.

        Args:
            done: the phase that this device has completed, and does not take part in again.
        """
        current = self.round
        if current is None or current.run != run or phase_key(current) == done:
            return None
        takes_part = current.phase in ENDED or self.part_in(current) is not None
        return current if takes_part else None

    def part_in(self, opened: RoundOpen) -> Participation | None:
        """What this device does in a phase, as far as it knows; None: it takes no part."""
        last = self.participation
        is_of_it = last is not None and phase_key(last) == phase_key(opened) and last.part is not None
        return last if is_of_it else None

    def is_dropped_from(self, opened: RoundOpen) -> bool:
        """Whether the server has said that a phase goes on without this device."""
        last = self.participation
        return last is not None and phase_key(last) == phase_key(opened) and last.part is None

    def has_passed(self, opened: RoundOpen) -> bool:
        """Whether the server has opened a later phase of the same attempt.

        Any other phase may be an older one: a broker that was killed begins with what it last saved.
        """
        current = self.round
        if current is None or (current.run, current.attempt) != (opened.run, opened.attempt):
            return False
        return _position(current) > _position(opened)

    def assignment_for(self, opened: RoundOpen, part: Participant) -> Assignment | None:
        """The server's assignment of the commit that `part` in `opened` continues from, once it has come."""
        found = self.assignment
        continued = opened.attempt, part.base, part.fresh
        if found is not None and (found.attempt, found.committed, found.fresh) == continued:
            return found
        return None

    def outcome(self, opened: RoundOpen, digest: str) -> Outcome:
        """What became of the round `opened`, which this device has trained to weights of `digest`.

        Normally the device's own assignment tells it. A device that was dropped before the commit may get no
        assignment. It learns the outcome from being dropped, or from the round that a later phase continues
        from. Only messages of the same attempt count: a server that lost its last round commits it again.
        """
        last = self.assignment
        if last is not None and (last.run, last.attempt) == (opened.run, opened.attempt):
            if (last.committed, last.trained) == (opened.round, digest):
                return Outcome.COMMITTED
            if last.committed >= opened.round:
                return Outcome.COMMITTED_WITHOUT
        if self.is_dropped_from(opened) or self._continues_from_before(opened):
            return Outcome.COMMITTED_WITHOUT
        return Outcome.PENDING

    def _continues_from_before(self, opened: RoundOpen) -> bool:
        """Whether a phase after the training `opened` has this device continue from an earlier round."""
        last = self.participation
        if last is None or last.part is None or phase_key(last) == phase_key(opened):
            return False
        is_later = (last.run, last.attempt) == (opened.run, opened.attempt) and last.round >= opened.round
        return is_later and last.part.base < opened.round

    def _is_at(self, phases: tuple[str, ...]) -> bool:
        current, spec = self.round, self.spec
        return (
            current is not None and spec is not None and current.run == spec.run and current.phase in phases
        )


def _position(opened: RoundOpen) -> tuple[int, int]:
    """Where a phase is in an attempt. Gathering may come before or after those with its round's number."""
    return opened.round, IN_ORDER.index(opened.phase) if opened.phase in IN_ORDER else -1
