# SPDX-License-Identifier: Apache-2.0
"""Rank 0's side: it sends the other ranks a phase's trunks, follows their work, and collects the results."""

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
from splitee_server.ranks.assignment import LaneAssignment, RankAssignment
from splitee_server.ranks.feature_subscriptions import FeatureSubscriptions
from splitee_server.ranks.group import Group
from splitee_server.ranks.messages import (
    POLL_EVERY,
    POLL_EVERY_IN_STEP,
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
    Report,
    encode,
    reports,
)
from splitee_server.ranks.ranks import Ranks
from splitee_server.ranks.state_transfer import pack, receive_state, send_state, unpack, unpack_score
from splitee_server.rounds.phase import Phase
from splitee_server.rounds.progress import Trained


class Leader(Ranks):
    """Records what the other ranks hold of each device, so that only what they lack is sent."""

    idle = POLL_EVERY
    subscribes_by_device = True

    def __init__(
        self,
        group: Group,
        port: Port,
        topics: Topics,
        assignment: RankAssignment | LaneAssignment,
        clock: Clock = time.monotonic,
    ) -> None:
        self._group = group
        self._clock = clock
        self._assignment = assignment
        self._rank_of: dict[str, int] = {}  # of the phase under way
        self._phases_opened = 0
        self._step: int | None = None  # the open one, if the strategy has joint steps
        self._model_version = 0  # of the models: increases when they change
        self._sent_versions: dict[int, int] = {}  # the version that a rank has
        self._holders: dict[str, tuple[int, int]] = {}  # the rank that has its momentum, and for which cut
        self._run: tuple[RunSpec, int] | None = None  # of the two above, and its attempt
        self._poll_due = 0.0
        self._trained: dict[int, Trained] = {}
        self._traffic: dict[int, dict[str, Traffic]] = {}
        self._refused: Counter[tuple[str, Reason]] = Counter()
        self._duplicates = 0
        self._subscriptions = FeatureSubscriptions(port, topics)

    def begin(self, client: str, initial: InitialWeights | None) -> None:
        """Tell the others that the run is open. `client`, `initial`: as in `Begin`."""
        for rank in self._group.others():
            self._send(rank, Begin(client, initial is not None))
            if initial is not None:
                self._group.send(rank, initial.encode())

    def is_remote(self, device: str) -> bool:
        return self._rank_of.get(device, 0) > 0

    def assign_ranks(self, devices: Collection[str]) -> frozenset[str]:
        self._rank_of = self._assignment.assign_ranks(devices)
        return frozenset(device for device, rank in self._rank_of.items() if rank > 0)

    def open(self, phase: Phase, spec: RunSpec, model: FleetModel) -> None:
        opened = phase.opened
        if self._run != (spec, opened.attempt):
            self._sent_versions, self._holders = {}, {}
            self._run = (spec, opened.attempt)
        self._phases_opened += 1
        own = [device for device, rank in self._rank_of.items() if rank == 0]
        self._subscriptions.set_devices(own)
        for device in own:  # what another rank still has of it will be outdated
            self._holders.pop(device, None)
        for rank in self._group.others():
            self._send_phase(rank, phase, spec, model)
        for rank in self._group.others():
            self._wait_for_opened(rank)
        joint = phase.kind == "train" and model.order == "joint"
        self.idle = POLL_EVERY_IN_STEP if joint else POLL_EVERY
        self._step = 0 if joint else None
        if joint:
            phase.open_step(0)

    def _send_phase(self, rank: int, phase: Phase, spec: RunSpec, model: FleetModel) -> None:
        own = {device: part for device, part in phase.participants.items() if self._rank_of[device] == rank}
        averages = self._sent_versions.get(rank) != self._model_version
        memories = [
            device
            for device, part in own.items()
            if phase.kind == "train" and self._holders.get(device) != (rank, part.cut)
        ]
        order = Open(self._phases_opened, spec.encode(), phase.opened, own, tuple(memories))
        self._send(rank, order)
        self._group.send(rank, pack(model.phase_state(own, averages=averages)))
        for device in memories:
            self._group.send(rank, pack(model.training_state(device)))
        self._sent_versions[rank] = self._model_version
        self._holders |= {device: (rank, own[device].cut) for device in memories}

    def follow(self, phase: Phase, model: FleetModel) -> bool:
        if self._clock() < self._poll_due:
            return False
        self._poll_due = self._clock() + self.idle
        rejected = False
        for rank in self._group.others():
            for report in self._reports(rank):
                rejected |= self._apply_report(rank, report, phase)
        self._join_step(phase, model)
        return rejected

    def _join_step(self, phase: Phase, model: FleetModel) -> None:
        """End the step that is open, once all its batches have been worked on, and open the next one."""
        if self._step is None or not phase.is_step_complete():
            return
        assert isinstance(self._assignment, LaneAssignment)
        own, *assigned = (self._assignment.lanes(rank) for rank in range(self._group.size))
        for rank, lanes in zip(self._group.others(), assigned, strict=True):
            self._send(rank, JoinStep(self._step + 1, (lanes.start, lanes.stop)))
        parts = [receive_state(self._group, rank) for rank in self._group.others()]
        changed = model.end_step(*parts, lanes=own)
        model.move_to(send_state(self._group, self._group.others(), changed))
        self._step = self._step + 1 if phase.has_batches_left() else None
        if self._step is not None:
            phase.open_step(self._step)

    def acknowledge(self, device: str) -> None:
        self._send(self._rank_of[device], Acknowledge(device))

    def go_on_without(self, devices: tuple[str, ...]) -> None:
        for rank in self._group.others():
            assigned = tuple(device for device in devices if self._rank_of.get(device) == rank)
            if assigned:
                self._send(rank, GoOnWithout(assigned))
        for device in devices:  # the batches they have trained do not count
            self._holders.pop(device, None)
            self._rank_of.pop(device, None)
        self._subscriptions.remove(devices)

    def collect(self, phase: Phase, model: FleetModel) -> None:
        of_rank: dict[int, list[str]] = {}
        for device in sorted(phase.participants):
            if self.is_remote(device):
                of_rank.setdefault(self._rank_of[device], []).append(device)
        self._join_step(phase, model)
        for rank, devices in of_rank.items():
            self._send(rank, Collect(tuple(devices)))
        for rank, devices in of_rank.items():
            for device in devices:
                self._load_result(phase, model, device, self._group.receive(rank))
            self._traffic[rank] = self._wait_for_collected(rank, phase).traffic

    @staticmethod
    def _load_result(phase: Phase, model: FleetModel, device: str, data: bytes) -> None:
        if phase.kind == "evaluate":
            phase.scores[device] = unpack_score(data)
        elif phase.kind == "train":
            model.load_round_result(device, unpack(data))
        else:
            model.load_observed_statistics(device, unpack(data))

    def models_have_changed(self) -> None:
        self._model_version += 1

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
            self._send(rank, End())
        for rank in self._group.others():
            self._wait_for_end(rank)

    def leave(self) -> None:
        self._group.leave()

    def _wait_for_end(self, rank: int) -> None:
        def found() -> Gone | None:
            return next((report for report in self._reports(rank) if isinstance(report, Gone)), None)

        self._group.wait_for(found, f"rank {rank} does not end")

    def _wait_for_opened(self, rank: int) -> None:
        """Wait until a rank has opened the phase; standings that it sent before are of an earlier one."""

        def found() -> Opened | None:
            for report in self._reports(rank):
                if report == Opened(self._phases_opened):
                    return report
                if isinstance(report, Progress):
                    self._count(rank, report)
            return None

        self._group.wait_for(found, f"rank {rank} does not open the phase")

    def _wait_for_collected(self, rank: int, phase: Phase) -> Collected:
        def found() -> Collected | None:
            for report in self._reports(rank):
                if isinstance(report, Collected):
                    return report
                self._apply_report(rank, report, phase)
            return None

        return self._group.wait_for(found, f"rank {rank} does not complete its states")

    def _apply_report(self, rank: int, report: Report, phase: Phase) -> bool:
        """True: it reports a batch that could not be worked on."""
        if not isinstance(report, Progress):
            return False
        self._count(rank, report)
        rejected = False
        for device, progress in report.standings.items():
            if device in phase and self._rank_of.get(device) == rank:
                rejected |= progress.rejected > phase.rejected(device)
                phase.note_remote_progress(device, progress)
        return rejected

    def _count(self, rank: int, report: Progress) -> None:
        """Add to the run's counts, whichever phase it is of."""
        self._trained[rank] = report.trained
        self._duplicates += report.duplicates
        for device, reason, count in report.refused:
            self._refused[device, reason] += count

    def _reports(self, rank: int) -> Iterator[Report]:
        for message in self._group.new_messages(rank):
            yield reports.decode(message)

    def _send(self, rank: int, order: Order) -> None:
        self._group.post(rank, encode(order))
