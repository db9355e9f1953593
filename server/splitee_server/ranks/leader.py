# SPDX-License-Identifier: Apache-2.0
"""Rank 0's side: it lends the other ranks a phase's trunks, follows their work, and takes it back."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterator

from msgspec.structs import replace

from splitee.clock import Clock
from splitee.errors import Reason
from splitee.mqtt.port import Port
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.topics import Topics
from splitee.protocol.traffic import Traffic
from splitee_server.learning.fleet_model import FleetModel
from splitee_server.learning.initial.weights import InitialWeights
from splitee_server.ranks.dealing import Dealing, LaneDealing
from splitee_server.ranks.group import Group
from splitee_server.ranks.listening import Listening
from splitee_server.ranks.messages import (
    LOOK,
    LOOK_IN_STEP,
    Acknowledge,
    Begin,
    Collect,
    Collected,
    End,
    Gone,
    GoOnWithout,
    JoinStep,
    Open,
    Opened,
    Order,
    Progress,
    Word,
    encode,
    words,
)
from splitee_server.ranks.parcels import pack, receive_apart, send_apart, unpack, unpack_score
from splitee_server.ranks.ranks import Ranks
from splitee_server.rounds.phase import Phase
from splitee_server.rounds.progress import Trained


class Leader(Ranks):
    """Records what the other ranks hold of each device, so that only what they lack is sent."""

    idle = LOOK
    listens_by_name = True

    def __init__(
        self,
        group: Group,
        port: Port,
        topics: Topics,
        dealing: Dealing | LaneDealing,
        clock: Clock = time.monotonic,
    ) -> None:
        self._group = group
        self._clock = clock
        self._dealing = dealing
        self._dealt: dict[str, int] = {}  # of the phase under way
        self._orders = 0
        self._step: int | None = None  # the open one, if the strategy has joint steps
        self._edition = 0  # of the models
        self._averages: dict[int, int] = {}  # the edition that a rank has
        self._memories: dict[str, tuple[int, int]] = {}  # the rank that has its momentum, and for which cut
        self._run: tuple[RunSpec, int] | None = None  # of the two above, and its attempt
        self._look_due = 0.0
        self._trained: dict[int, Trained] = {}
        self._traffic: dict[int, dict[str, Traffic]] = {}
        self._refused: Counter[tuple[str, Reason]] = Counter()
        self._duplicates = 0
        self._listening = Listening(port, topics)

    def begin(self, client: str, initial: InitialWeights | None) -> None:
        """Tell the others that the run is open. `client`, `initial`: as in `Begin`."""
        for rank in self._group.others():
            self._tell(rank, Begin(client, initial is not None))
            if initial is not None:
                self._group.send(rank, initial.encode())

    def serves(self, device: str) -> bool:
        return self._dealt.get(device, 0) > 0

    def deal(self, devices: Collection[str]) -> frozenset[str]:
        self._dealt = self._dealing.deal(devices)
        return frozenset(device for device, rank in self._dealt.items() if rank > 0)

    def open(self, phase: Phase, spec: RunSpec, model: FleetModel) -> None:
        opened = phase.opened
        if self._run != (spec, opened.attempt):
            self._averages, self._memories = {}, {}
            self._run = (spec, opened.attempt)
        self._orders += 1
        own = [device for device, rank in self._dealt.items() if rank == 0]
        self._listening.to(own)
        for device in own:  # what another rank still has of it will be outdated
            self._memories.pop(device, None)
        for rank in self._group.others():
            self._lend(rank, phase, spec, model)
        for rank in self._group.others():
            self._opened(rank)
        joint = phase.kind == "train" and model.order == "joint"
        self.idle = LOOK_IN_STEP if joint else LOOK
        self._step = 0 if joint else None
        if joint:
            phase.open_step(0)

    def _lend(self, rank: int, phase: Phase, spec: RunSpec, model: FleetModel) -> None:
        own = {device: part for device, part in phase.participants.items() if self._dealt[device] == rank}
        averages = self._averages.get(rank) != self._edition
        memories = [
            device
            for device, part in own.items()
            if phase.kind == "train" and self._memories.get(device) != (rank, part.cut)
        ]
        order = Open(self._orders, spec.encode(), phase.opened, own, tuple(memories))
        self._tell(rank, order)
        self._group.send(rank, pack(model.lend(own, averages=averages)))
        for device in memories:
            self._group.send(rank, pack(model.lend_memory(device)))
        self._averages[rank] = self._edition
        self._memories |= {device: (rank, own[device].cut) for device in memories}

    def follow(self, phase: Phase, model: FleetModel) -> bool:
        if self._clock() < self._look_due:
            return False
        self._look_due = self._clock() + self.idle
        rejected = False
        for rank in self._group.others():
            for word in self._words(rank):
                rejected |= self._take_in(rank, word, phase)
        self._join_step(phase, model)
        return rejected

    def _join_step(self, phase: Phase, model: FleetModel) -> None:
        """End the step that is open, once all its batches have been worked on, and open the next one."""
        if self._step is None or not phase.is_step_complete():
            return
        assert isinstance(self._dealing, LaneDealing)
        own, *theirs = (self._dealing.lanes(rank) for rank in range(self._group.size))
        for rank, lanes in zip(self._group.others(), theirs, strict=True):
            self._tell(rank, JoinStep(self._step + 1, (lanes.start, lanes.stop)))
        parts = [receive_apart(self._group, rank) for rank in self._group.others()]
        changed = model.end_step(*parts, lanes=own)
        model.move_to(send_apart(self._group, self._group.others(), changed))
        self._step = self._step + 1 if phase.has_batches_left() else None
        if self._step is not None:
            phase.open_step(self._step)

    def acknowledge(self, device: str) -> None:
        self._tell(self._dealt[device], Acknowledge(device))

    def go_on_without(self, devices: tuple[str, ...]) -> None:
        for rank in self._group.others():
            theirs = tuple(device for device in devices if self._dealt.get(device) == rank)
            if theirs:
                self._tell(rank, GoOnWithout(theirs))
        for device in devices:  # the batches they have trained do not count
            self._memories.pop(device, None)
            self._dealt.pop(device, None)
        self._listening.without(devices)

    def collect(self, phase: Phase, model: FleetModel) -> None:
        of_rank: dict[int, list[str]] = {}
        for device in sorted(phase.participants):
            if self.serves(device):
                of_rank.setdefault(self._dealt[device], []).append(device)
        self._join_step(phase, model)
        for rank, devices in of_rank.items():
            self._tell(rank, Collect(tuple(devices)))
        for rank, devices in of_rank.items():
            for device in devices:
                self._take_back(phase, model, device, self._group.receive(rank))
            self._traffic[rank] = self._collected(rank, phase).traffic

    @staticmethod
    def _take_back(phase: Phase, model: FleetModel, device: str, data: bytes) -> None:
        if phase.kind == "evaluate":
            phase.scores[device] = unpack_score(data)
        elif phase.kind == "train":
            model.take_back(device, unpack(data))
        else:
            model.take_seen(device, unpack(data))

    def models_have_changed(self) -> None:
        self._edition += 1

    def with_trained(self, own: Trained) -> Trained:
        total = replace(own)
        for other in self._trained.values():
            total.batches += other.batches
            total.samples += other.samples
            total.seconds += other.seconds
        return total

    def traffic_of(self, device: str) -> Traffic:
        return sum((moved[device] for moved in self._traffic.values() if device in moved), Traffic())

    def take_refused(self) -> Counter[tuple[str, Reason]]:
        refused, self._refused = self._refused, Counter()
        return refused

    def take_duplicates(self) -> int:
        duplicates, self._duplicates = self._duplicates, 0
        return duplicates

    def end(self) -> None:
        for rank in self._group.others():
            self._tell(rank, End())
        for rank in self._group.others():
            self._heard_of_end(rank)

    def leave(self) -> None:
        self._group.leave()

    def _heard_of_end(self, rank: int) -> None:
        def found() -> Gone | None:
            return next((word for word in self._words(rank) if isinstance(word, Gone)), None)

        self._group.wait_for(found, f"rank {rank} does not end")

    def _opened(self, rank: int) -> None:
        """Wait until a rank has opened the phase; standings that it sent before are of an earlier one."""

        def found() -> Opened | None:
            for word in self._words(rank):
                if word == Opened(self._orders):
                    return word
                if isinstance(word, Progress):
                    self._count(rank, word)
            return None

        self._group.wait_for(found, f"rank {rank} does not open the phase")

    def _collected(self, rank: int, phase: Phase) -> Collected:
        def found() -> Collected | None:
            for word in self._words(rank):
                if isinstance(word, Collected):
                    return word
                self._take_in(rank, word, phase)
            return None

        return self._group.wait_for(found, f"rank {rank} does not complete its states")

    def _take_in(self, rank: int, word: Word, phase: Phase) -> bool:
        """True: it reports a batch that could not be worked on."""
        if not isinstance(word, Progress):
            return False
        self._count(rank, word)
        rejected = False
        for device, standing in word.standings.items():
            if device in phase and self._dealt.get(device) == rank:
                rejected |= standing.rejected > phase.rejected(device)
                phase.note_elsewhere(device, standing)
        return rejected

    def _count(self, rank: int, word: Progress) -> None:
        """Add to the run's counts, whichever phase it is of."""
        self._trained[rank] = word.trained
        self._duplicates += word.duplicates
        for device, reason, count in word.refused:
            self._refused[device, reason] += count

    def _words(self, rank: int) -> Iterator[Word]:
        for message in self._group.heard(rank):
            yield words.decode(message)

    def _tell(self, rank: int, order: Order) -> None:
        self._group.post(rank, encode(order))
