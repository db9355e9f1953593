# SPDX-License-Identifier: Apache-2.0
"""The server's service on a fake port and clock, with devices that reply at once, late, or never."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from fakes import FakeClock, FakePort, Sent
from msgspec.structs import replace
from torch import Tensor

from splitee.durable import StateDirectory
from splitee.networks.split import SplitNetwork, build_for
from splitee.protocol import routes
from splitee.protocol.cut_batch import CutBatch
from splitee.protocol.fleet import DeviceFigures, DeviceStatus, ErrorReport, Metrics, Profile
from splitee.protocol.rounds import (
    Ack,
    Assignment,
    Commit,
    Participant,
    Participation,
    RoundDone,
    RoundOpen,
    Sync,
)
from splitee.protocol.routes import Route
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.sender_limits import SenderLimits
from splitee.protocol.topics import PROTOCOL, Topics
from splitee.training.batchnorm_statistics import is_statistic
from splitee.training.seeds import seed_for
from splitee.training.state import weights_digest
from splitee.training.weights import client_model, pack_weights
from splitee_server.monitoring.observer import Observer
from splitee_server.rounds.checkpoints import Checkpoints
from splitee_server.rounds.policy import Policy
from splitee_server.service import Service

TOPICS = Topics("virtual")
CLASSES = ("a", "b", "c")
RUN = RunSpec(
    protocol=PROTOCOL,
    run="run",
    network="tiny_networks:steady",
    num_classes=3,
    rounds=2,
    batch_size=4,
    seed=1,
)


@cache
def stages() -> tuple[Any, ...]:
    return build_for(RUN).stages


@cache
def client_weights(cut: int) -> dict[str, Tensor]:
    return client_model(build_for(RUN), cut, RUN).state_dict()


class VirtualDevice:
    """Sends the batches that the server requests, generated from (device, round, phase, step).

    Attributes:
        before_batch: called with (round, phase, step) before each batch is sent.
        good_rounds: rounds in which the exit predicts all held-out images correctly; in others it predicts
            all wrongly; always with uncertainty 0. None: its predictions are random.
        claims: seconds that it reports for a round.
        is_ahead: it sends as many batches as its room allows; else each when the last one is acknowledged.
    """

    def __init__(
        self, port: FakePort, name: str, cut: int = 1, *, samples: int = 12, held_out: int = 5
    ) -> None:
        self.port = port
        self.name = name
        self._silent_until = 0.0
        self.before_batch: Callable[[int, str, int], None] = lambda _round, _phase, _step: None
        self.good_rounds: frozenset[int] | None = None
        self.claims = 1.0
        self.is_ahead = False
        self.errors: list[ErrorReport] = []
        self.assignments: list[Assignment] = []
        self.parts: list[tuple[str, int, Participant]] = []  # phase, round, and its part in it
        self.profile = Profile(
            protocol=PROTOCOL,
            instance=1,
            version="1",
            cut=cut,
            class_names=CLASSES,
            train_samples=samples,
            held_out_samples=held_out,
        )
        self._opened: RoundOpen | None = None
        self._participation: Participation | None = None
        self._trained: dict[int, str] = {}  # digest of the weights that it has sent, by round
        self._sent = 0

    def join(self, **changed: Any) -> None:
        """Publish that it is online, and its profile with these fields changed."""
        self.profile = replace(self.profile, **changed)
        self.publish(routes.STATUS, DeviceStatus(state="online", instance=self.profile.instance).encode())
        self.publish(routes.PROFILE, self.profile.encode())

    @property
    def silent(self) -> bool:
        """Whether it publishes nothing; it still receives."""
        return self.port.clock() < self._silent_until

    def pause(self, seconds: float = float("inf")) -> None:
        """Publish nothing for `seconds`, then send a `sync`; by default for ever."""
        self._silent_until = self.port.clock() + seconds
        if seconds < float("inf"):
            self.publish(routes.SYNC, Sync(run=RUN.run, instance=self.profile.instance).encode(), seconds)

    def publish(self, route: Route, payload: bytes, seconds: float = 0.0) -> None:
        self.port.later(seconds, route.topic(TOPICS, self.name), payload)

    def receive(self, sent: Sent) -> None:
        """Handle a message of the server; an empty payload only clears a retained message."""
        if not sent.payload:
            return
        if sent.topic == TOPICS.round:
            self._on_round(RoundOpen.decode(sent.payload))
        elif sent.topic == routes.PARTICIPATION.topic(TOPICS, self.name):
            self._participation = Participation.decode(sent.payload)
        elif sent.topic == routes.ACK.topic(TOPICS, self.name):
            self._on_ack(Ack.decode(sent.payload))
        elif sent.topic == routes.ERROR.topic(TOPICS, self.name):
            self.errors.append(ErrorReport.decode(sent.payload))
        elif sent.topic == routes.ASSIGNMENT.topic(TOPICS, self.name):
            self.assignments.append(Assignment.decode(sent.payload))
            self.profile = replace(self.profile, cut=self.assignments[-1].cut)

    def _on_round(self, opened: RoundOpen) -> None:
        part = self.part_in(opened)
        if part is None or (self._opened is not None and _key(opened) == _key(self._opened)):
            return  # of a phase without it, or from which other devices were dropped
        self._opened, self._sent = opened, 0
        self.parts.append((opened.phase, opened.round, part))
        assert self._participation is not None
        self._send_up_to(self._participation.room if self.is_ahead else 1)

    def part_in(self, opened: RoundOpen) -> Participant | None:
        """Its part in a phase, from the last participation."""
        last = self._participation
        return last.part if last is not None and _key(last) == _key(opened) else None

    def counts_in(self, commit: Commit) -> bool:
        """Whether the commit contains its training, by its last assignment."""
        last = self.assignments[-1] if self.assignments else None
        if last is None or (last.attempt, last.committed) != (commit.attempt, commit.round):
            return False
        return last.trained is not None and last.trained == self._trained.get(commit.round)

    def _on_ack(self, ack: Ack) -> None:
        opened = self._opened
        if opened is None or (ack.round, ack.phase) != (opened.round, opened.phase):
            return
        if ack.resend:
            self._sent = min(self._sent, ack.step)
        part = self.part_in(opened)
        assert part is not None
        if ack.step == part.steps and ack.phase != "evaluate":
            self._finish(opened)
        else:
            self._send_up_to(ack.step + (ack.room if self.is_ahead else 1))

    def _send_up_to(self, step: int) -> None:
        opened = self._opened
        assert opened is not None
        part = self.part_in(opened)
        assert part is not None
        while not self.silent and self._sent < min(step, part.steps):
            self.before_batch(opened.round, opened.phase, self._sent)
            if self.silent:
                return
            self.publish(routes.FEATURES, self.features(opened, self._sent))
            self._sent += 1

    def features(self, opened: RoundOpen, step: int) -> bytes:
        cut = self.profile.cut
        draw = np.random.default_rng(seed_for(self.name, opened.round, opened.phase, step))
        features = draw.normal(size=(4, *stages()[cut - 1].feature_shape)).astype(np.float32)
        labels = draw.integers(0, 3, 4)
        batch = CutBatch(features, labels)
        if opened.phase == "evaluate":
            batch = CutBatch(features, labels, draw.integers(0, 3, 4), draw.random(4, dtype=np.float32))
            if self.good_rounds is not None:
                predicted = labels if opened.round in self.good_rounds else (labels + 1) % 3
                batch = CutBatch(features, labels, predicted, np.zeros(4, np.float32))
        return batch.message(RUN, opened, opened.batches, step).encode()

    def _finish(self, opened: RoundOpen) -> None:
        if self.silent:
            return
        part = self.part_in(opened)
        assert part is not None
        weights = {
            name: tensor + opened.round
            for name, tensor in client_weights(part.cut).items()
            if opened.phase == "train" or is_statistic(name)
        }
        if part.weights:
            named = opened.run, opened.round, opened.attempt
            for payload in pack_weights(*named, weights, opened.batches):
                self.publish(routes.WEIGHTS, payload)
        digest = weights_digest(weights)
        if opened.phase == "train":
            self._trained[opened.round] = digest
        done = RoundDone(
            run=opened.run,
            round=opened.round,
            attempt=opened.attempt,
            digest=digest,
            batches=part.steps,
            bytes=100,
            loss=1.0,
            accuracy=0.5,
            seconds=self.claims,
            phase=opened.batches,
        )
        self.publish(routes.ROUND_DONE, done.encode())


class VirtualFleet:
    """A service and its devices; `run` serves the whole run without waiting."""

    def __init__(
        self,
        path: Path,
        *names: str,
        policy: Policy | None = None,
        instance: int = 100,
        observers: Sequence[Observer] = (),
        **settings: Any,
    ) -> None:
        self.clock = FakeClock()
        self.port = FakePort(self.clock)
        self.port.on_sent = self._on_sent
        self.limits = SenderLimits(TOPICS, clock=self.clock)
        self.spec = replace(RUN, **settings)
        self.directory = StateDirectory(path)
        self.checkpoints = Checkpoints(self.directory)
        self.network: SplitNetwork = build_for(self.spec)
        self.devices = {name: VirtualDevice(self.port, name, 1 + i % 2) for i, name in enumerate(names)}
        self.commits: dict[int, Commit] = {}
        self.counted: dict[int, list[str]] = {}  # devices whose training is in the last commit of a round
        self.metrics: list[Metrics] = []
        self._figures: dict[str, DeviceFigures] = {}  # last figures of each device
        self.phases: list[tuple[str, int]] = []
        self.stopped = False
        self.on_phase: Callable[[RoundOpen], None] = lambda _opened: None
        self.service = Service(
            self.port,
            TOPICS,
            self.checkpoints.open(self.spec, fresh=False),
            self.network,
            self.checkpoints,
            policy or Policy(devices=len(names), quorum=1),
            instance=instance,
            stop=lambda: self.stopped,
            observers=observers,
            limits=self.limits,
            clock=self.clock,
        )

    def run(self) -> dict[str, Any]:
        for device in self.devices.values():
            device.join()
        try:
            return self.service.run()
        finally:
            self.directory.close()

    @property
    def rejected(self) -> dict[tuple[str, str], int]:
        """Number of rejected messages by sender and reason."""
        return dict(self.service.gate.rejected)

    def _on_sent(self, sent: Sent) -> None:
        if sent.topic == TOPICS.commit:
            commit = Commit.decode(sent.payload)
            self.commits[commit.round] = commit
            counts = [name for name, device in self.devices.items() if device.counts_in(commit)]
            self.counted[commit.round] = sorted(counts)
        elif sent.topic == TOPICS.metrics:
            metrics = Metrics.decode(sent.payload)
            assert not metrics.devices, "they have messages of their own"
            latest = self._figures.items()
            devices = {name: one.figures for name, one in latest if one.round == metrics.round}
            self.metrics.append(replace(metrics, devices=devices))
        elif sent.payload and sent.topic.endswith("/metrics"):
            of_device = TOPICS.parse_device(sent.topic)
            assert of_device is not None
            self._figures[of_device[0]] = DeviceFigures.decode(sent.payload)
        elif sent.topic == TOPICS.round:
            opened = RoundOpen.decode(sent.payload)
            if self.phases[-1:] != [(opened.phase, opened.round)]:
                self.phases.append((opened.phase, opened.round))
                self.on_phase(opened)
        for device in self.devices.values():
            device.receive(sent)


def _key(opened: RoundOpen | Participation) -> tuple[int, int, str]:
    return opened.attempt, opened.round, opened.phase
