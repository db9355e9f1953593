# SPDX-License-Identifier: Apache-2.0
"""Rank 0 and another rank, which runs on a thread, without torchrun and a broker."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType

import torch
from fakes import FakeClock, FakePort
from msgspec.structs import replace
from torch import Tensor
from torch.distributed import HashStore  # type: ignore[attr-defined]
from virtual_fleet import RUN, TOPICS, VirtualDevice
from waiting import until

from splitee.mqtt.events import Event
from splitee.networks.split import build_for
from splitee.protocol import routes
from splitee.protocol.cut_batch import CutBatch
from splitee.protocol.fields import RunPhase
from splitee.protocol.rounds import Features, Participant, RoundOpen
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.sender_limits import SenderLimits
from splitee.training.state import weights_digest
from splitee.training.tensors import tensor_of
from splitee_server.learning.fleet_model import FleetModel
from splitee_server.ranks.assignment import LaneAssignment, RankAssignment
from splitee_server.ranks.group import Group
from splitee_server.ranks.leader import Leader
from splitee_server.ranks.place import Place
from splitee_server.ranks.trainer import Trainer
from splitee_server.rounds.phase import Phase
from splitee_server.rounds.policy import Policy
from splitee_server.rounds.windows import Budget, Windows, open_windows

SPEC = replace(RUN, strategy="averaging")
JOINT = replace(RUN, strategy="data-parallel")  # pi-2 and pi-3 are dealt to the other rank
CUTS = {"pi-1": 1, "pi-2": 2, "pi-3": 1}  # pi-2 is dealt to the other rank
STEPS = 3


class MemoryGroup(Group):
    """A group of ranks in one process, which send states through queues."""

    def __init__(
        self, rank: int, store: HashStore, states: dict[tuple[int, int], queue.Queue[bytes]]
    ) -> None:
        super().__init__(Place(rank, 2), store)
        self.heartbeats.start()
        self._states = states

    def send(self, rank: int, data: bytes) -> None:
        self._states[self.rank, rank].put(data)

    def receive(self, rank: int) -> bytes:
        return self._states[rank, self.rank].get(timeout=60)

    def send_tensors(self, ranks: Iterable[int], tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        for rank in ranks:
            for tensor in tensors:
                self.send(rank, tensor.numpy().tobytes())
        return tensors

    def receive_tensors(self, rank: int, outlines: Iterable[Tensor]) -> list[Tensor]:
        return [
            torch.frombuffer(bytearray(self.receive(rank)), dtype=outline.dtype).view(outline.shape)
            for outline in outlines
        ]


class PatientPort(FakePort):
    """Waits a little for events, as another thread delivers them."""

    def receive(self, timeout: float | None) -> Event | None:
        if not self.has_events:
            time.sleep(min(timeout or 0, 0.01))
        return super().receive(timeout)


class Ranks:
    """Rank 0, which a test drives, and the other one, which runs on a thread."""

    def __init__(self, spec: RunSpec = SPEC) -> None:
        self.spec = spec
        store, queues = HashStore(), {(0, 1): queue.Queue[bytes](), (1, 0): queue.Queue[bytes]()}
        self.group = MemoryGroup(0, store, queues)
        self.port, self.other_port = FakePort(FakeClock()), PatientPort(FakeClock())
        self.bound: dict[str, list[int]] = {}  # the ranks that can serve a device, if not all can
        dealing = LaneAssignment(2) if spec is JOINT else RankAssignment(2, self.bound.get)
        self.leader = Leader(self.group, self.port, TOPICS, dealing)
        self.model = self.new_model()
        for device, cut in CUTS.items():
            self.model.join(device, cut, 4 * STEPS)
        self._other_group = MemoryGroup(1, store, queues)
        self._trainer = Trainer(
            self._other_group,
            self.other_port,
            TOPICS,
            Policy(devices=3, quorum=1),
            None,
            stop=lambda: False,
            limits=SenderLimits(TOPICS),
        )
        self._thread = threading.Thread(target=self._trainer.run, daemon=True)
        self._thread.start()

    def new_model(self) -> FleetModel:
        return FleetModel(self.spec, build_for(self.spec))

    def open(
        self,
        kind: RunPhase = "train",
        number: int = 1,
        attempt: int = 1,
        steps: Mapping[str, int] = MappingProxyType({}),
    ) -> Phase:
        """`steps`: of the devices that have not STEPS."""
        parts = {
            device: Participant(cut, steps.get(device, STEPS), number - 1) for device, cut in CUTS.items()
        }
        opened = RoundOpen(run=SPEC.run, round=number, attempt=attempt, phase=kind, participants=len(parts))
        remote = self.leader.assign_ranks(parts)
        own = {device: part for device, part in parts.items() if device not in remote}
        phase = Phase(
            opened,
            parts,
            order=self.model.order if kind == "train" else "any",
            window=8,
            windows=windows_of(opened, own),
            num_classes=3,
            clock=time.monotonic,
            remote=remote,
        )
        self.leader.open(phase, self.spec, self.model)
        return phase

    def say(self, device: str, payload: bytes) -> None:
        self.other_port.deliver(routes.FEATURES.topic(TOPICS, device), payload)

    def follow(self, phase: Phase, condition: Callable[[], object]) -> None:
        def followed() -> object:
            self.leader.follow(phase, self.model)
            return condition()

        until(followed)

    def drop(self, phase: Phase, *devices: str) -> None:
        phase.go_on_without(devices)
        for device in devices:
            self.model.forget(device)
        self.leader.go_on_without(devices)

    def end(self) -> None:
        self.leader.end()
        self._thread.join(60)
        assert not self._thread.is_alive()
        for group in (self.group, self._other_group):
            group.heartbeats.stop()


def windows_of(opened: RoundOpen, parts: dict[str, Participant]) -> Windows:
    return open_windows(
        opened, parts, SPEC, lambda _cut: (8, 2, 2), 1 << 20, Budget(1 << 30, 4096), order="any"
    )


def features(phase: Phase, device: str, step: int) -> bytes:
    made = VirtualDevice(FakePort(FakeClock()), device, CUTS[device])
    return made.features(phase.opened, step)


def train_here(model: FleetModel, phase: Phase) -> None:
    """Train all batches of pi-2 in a phase without a rank."""
    for step in range(STEPS):
        train_batch(model, phase, "pi-2", step, batch_of(model, phase, "pi-2", step))


def batch_of(model: FleetModel, phase: Phase, device: str, step: int) -> CutBatch:
    message = Features.decode(features(phase, device, step))
    return CutBatch.of(message, SPEC, model.feature_shape(CUTS[device]))


def train_batch(
    model: FleetModel, phase: Phase, device: str, step: int, batch: CutBatch, steps: int = STEPS
) -> None:
    tensors = tensor_of(batch.features), tensor_of(batch.labels)
    model.train(device, *tensors, round_number=phase.opened.round, step=step, steps=steps)


def trunk_digest(model: FleetModel) -> str:
    return weights_digest(model.round_result("pi-2")["strategy"]["trunk"])


class JointRanks(Ranks):
    """Ranks that end each step together."""

    def __init__(self) -> None:
        super().__init__(JOINT)

    def offer_here(self, phase: Phase) -> None:
        """Offer all batches of pi-1, which rank 0 serves."""
        for step in range(STEPS):
            phase.offer("pi-1", step, batch_of(self.model, phase, "pi-1", step))

    def work_until(self, phase: Phase, step: int) -> None:
        """Work until rank 0 has trained its own batches below `step`, which follow those of the others."""

        def worked() -> bool:
            while (taken := phase.take()) is not None:
                train_batch(self.model, phase, *taken)
            return phase.next_step("pi-1") == step

        self.follow(phase, worked)
