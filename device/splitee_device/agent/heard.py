# SPDX-License-Identifier: Apache-2.0
"""What a device has heard from its fleet: the latest message of each kind, and what follows from them."""

from __future__ import annotations

from enum import Enum, auto

from splitee.protocol.fleet import ServerStatus
from splitee.protocol.rounds import Ack, Assignment, Commit, RoundOpen
from splitee.protocol.run_spec import RunSpec

ENDED = ("release", "finished")  # phases of a run that trains no more

PhaseKey = tuple[str, int, int, str]


def phase_key(opened: RoundOpen) -> PhaseKey:
    """What tells one opening of one phase from every other."""
    return opened.run, opened.attempt, opened.round, opened.phase


class Outcome(Enum):
    """What became of a round that a device has trained."""

    PENDING = auto()
    COMMITTED = auto()  # with this device's weights in it
    COMMITTED_WITHOUT = auto()  # the round counts, and this device's part in it does not


class Heard:
    """A fold of the server's messages, for one process of one device."""

    def __init__(self, device: str, instance: int, now: float) -> None:
        self._device = device
        self._instance = instance
        self.spec: RunSpec | None = None
        self.round: RoundOpen | None = None
        self.commit: Commit | None = None
        self.assignment: Assignment | None = None
        self.ack: Ack | None = None
        self.server: ServerStatus | None = None
        self.last_word = now  # when the server was last heard

    def add(
        self, message: RunSpec | RoundOpen | Commit | Assignment | Ack | ServerStatus, now: float
    ) -> None:
        """Take in a message. What may be retained from long ago is no sign of a living server."""
        match message:
            case RunSpec():
                self.spec = message
            case Commit():
                self.commit = message
            case Assignment():
                self.assignment = message
            case RoundOpen():
                self.round, self.last_word = message, now
            case Ack():
                self.ack, self.last_word = message, now
            case ServerStatus():
                self.server = message
                if message.state == "online":
                    self.last_word = now

    @property
    def is_answered(self) -> bool:
        """Whether the server has taken this process of the device in."""
        return self.assignment is not None and self.assignment.instance == self._instance

    @property
    def is_trained(self) -> bool:
        """Whether the run trains no more."""
        return self._is_at(ENDED)

    @property
    def is_finished(self) -> bool:
        """Whether the run is over, and its models are released."""
        return self._is_at(("finished",))

    @property
    def is_alone(self) -> bool:
        """Whether no server is there, as far as one is known."""
        return self.server is None or self.server.state == "offline"

    def whom_it_waits_for(self) -> str:
        """Why nothing comes, as far as the server has said so; else ""."""
        if self.server is None or self.is_alone:
            return "the server is offline"
        if self.server.waiting_for:
            return "the server waits for " + ", ".join(self.server.waiting_for[:5])
        return ""

    def next_phase(self, run: str, done: PhaseKey | None) -> RoundOpen | None:
        """The phase that is open, where this device takes part in it, or the end of the run.

        Args:
            done: the phase that this device has completed, which it does not take part in again.
        """
        current = self.round
        if current is None or current.run != run or phase_key(current) == done:
            return None
        takes_part = current.phase in ENDED or self._device in current.participants
        return current if takes_part else None

    def assignment_for(self, opened: RoundOpen) -> Assignment | None:
        """The server's word on the commit that `opened` continues from, once it has come."""
        found, mine = self.assignment, opened.participants[self._device]
        continued = opened.attempt, mine.base, mine.fresh
        if found is not None and (found.attempt, found.committed, found.fresh) == continued:
            return found
        return None

    def outcome(self, opened: RoundOpen, digest: str) -> Outcome:
        """What became of the round `opened`, which this device has trained to weights of `digest`.

        Only words of the same attempt matter: a server that lost its last round commits it once more.
        """
        told, commit = self.assignment, self.commit
        attempt, mine = (opened.run, opened.attempt), (opened.round, digest)
        if (
            told is not None
            and (told.run, told.attempt) == attempt
            and (told.committed, told.trained) == mine
        ):
            return Outcome.COMMITTED
        if commit is None or (commit.run, commit.attempt) != attempt or commit.round < opened.round:
            return Outcome.PENDING
        if (commit.round, commit.digests.get(self._device)) == mine:
            return Outcome.COMMITTED
        return Outcome.COMMITTED_WITHOUT

    def _is_at(self, phases: tuple[str, ...]) -> bool:
        current, spec = self.round, self.spec
        return (
            current is not None and spec is not None and current.run == spec.run and current.phase in phases
        )
