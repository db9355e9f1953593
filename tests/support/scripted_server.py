# SPDX-License-Identifier: Apache-2.0
"""A server for one device over a fake port: assigns, opens phases, acknowledges and commits by a script."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import torch
from fakes import FakePort, Sent
from torch import Tensor

from splitee.mqtt.events import Message
from splitee.protocol import routes
from splitee.protocol.fleet import DeviceStatus, Profile, ServerStatus
from splitee.protocol.gate import Gate, Received
from splitee.protocol.rounds import (
    Ack,
    Assignment,
    Features,
    Participant,
    Participation,
    RoundDone,
    RoundOpen,
    Sync,
    Weights,
)
from splitee.protocol.routes import Route
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.topics import Topics
from splitee.training.batchnorm_statistics import statistics_steps
from splitee.training.epochs import evaluation_steps, steps_per_round
from splitee.training.soft_labels import SoftLabels, pack_rows
from splitee.training.weights import pack_weights, select

TOPICS = Topics("fleet")
DEVICE = "pi-1"
SENT_BY_DEVICES = (
    routes.STATUS,
    routes.PROFILE,
    routes.FEATURES,
    routes.ROUND_DONE,
    routes.WEIGHTS,
    routes.SYNC,
)
PhaseToOpen = tuple[str, int]


class ScriptedServer:
    """Opens the phases of a script one after another, each when the device has finished its part in the last.

    Attributes:
        is_lost: whether a message to the device is lost.
        on_done: called after a round-done and all its batches; by default the round is committed.
        held: weights of the client network that the device must fetch, if any.
        fresh: whether BatchNorm's statistics of the commit have been recomputed.
        batches, done, tensors, syncs, statuses, profiles: messages of the device, in order.
    """

    def __init__(
        self,
        port: FakePort,
        spec: RunSpec,
        script: Iterable[PhaseToOpen],
        *,
        cut: int = 1,
        samples: int = 4,
        held_out: int = 2,
    ) -> None:
        self.port = port
        self.spec = spec
        self.script = deque(script)
        self.cut = cut
        self.samples = samples
        self.held_out = held_out
        self.attempt = 7
        self.committed = 0
        self.digest: str | None = None
        self.trained: str | None = None
        self.held: dict[str, Tensor] | None = None
        self.fresh = False
        self.soft_labels: SoftLabels | None = None
        self.participant: dict[str, Any] = {}  # fields of the device's part in phases opened from now on
        self.opened: RoundOpen | None = None
        self.steps = 0  # number of steps of the device's part in the open phase
        self.next_step = 0
        self._round_done: RoundDone | None = None
        self.is_lost: Callable[[Route, Any], bool] = lambda _route, _message: False
        self.on_done: Callable[[RoundDone], None] = lambda _done: self.commit()
        self.on_profile: Callable[[Profile], None] = self.take_in
        self.batches: list[Features] = []
        self.done: list[RoundDone] = []
        self.tensors: list[Weights] = []
        self.syncs: list[Sync] = []
        self.statuses: list[DeviceStatus] = []
        self.profiles: list[Profile] = []
        self._gate = Gate(TOPICS, SENT_BY_DEVICES)
        port.on_sent = self.handle

    def send(self, route: Route, message: Any, seconds: float = 0) -> None:
        if not self.is_lost(route, message):
            self.port.later(seconds, route.topic(TOPICS, DEVICE), message.encode(), retained=route.retained)

    def open_run(self, seconds: float = 0) -> None:
        self.send(routes.RUN, self.spec, seconds)
        self.send(routes.SERVER_STATUS, ServerStatus(state="online", instance=self.attempt), seconds)

    def open_next(self) -> None:
        if self.script:
            self.open(*self.script.popleft())

    def open(self, phase: str, number: int) -> None:
        """Open a phase that continues from the last commit."""
        opening: dict[str, Any] = {
            "run": self.spec.run,
            "round": number,
            "attempt": self.attempt,
            "phase": phase,
        }
        part = None
        if phase == "train":
            part = self._part(steps_per_round(self.spec, self.samples), self.samples)
        elif phase == "statistics":
            part = self._part(statistics_steps(self.spec, self.samples), self.samples)
        elif phase == "evaluate":
            part = self._part(evaluation_steps(self.held_out), self.held_out)
        self.opened = RoundOpen(**opening, participants=int(part is not None))
        self.next_step, self._round_done = 0, None
        if part is not None:
            self.steps = part.steps
            self.send(routes.PARTICIPATION, Participation(**opening, part=part, room=self.spec.window))
        self.send(routes.ROUND, self.opened)

    def begin_anew(self) -> None:
        """Open the current phase again with a new attempt, as after a restart of the server."""
        assert self.opened is not None
        self.attempt += 1
        self.assign()
        self.open(self.opened.phase, self.opened.round)

    def take_in(self, profile: Profile) -> None:
        if self.opened is None:
            self.assign()
            self.open_next()

    def assign(self, seconds: float = 0) -> None:
        self.send(
            routes.ASSIGNMENT,
            Assignment(
                run=self.spec.run,
                attempt=self.attempt,
                instance=self.profiles[-1].instance,
                cut=self.cut,
                committed=self.committed,
                digest=self.digest,
                trained=self.trained,
                held=self.held is not None,
                fresh=self.fresh,
            ),
            seconds,
        )

    def commit(self, *, without: bool = False) -> None:
        """Commit the current round, and open the next phase of the script; `without`: without the device."""
        assert self.opened is not None
        if not without:
            self.committed = self.opened.round
            self.trained = self.digest = self.done[-1].digest
        else:
            self.drop()
        self.assign()
        self.open_next()

    def drop(self) -> None:
        """Continue the current phase without the device."""
        opened = self.opened
        assert opened is not None
        self.send(
            routes.PARTICIPATION,
            Participation(run=opened.run, round=opened.round, attempt=opened.attempt, phase=opened.batches),
        )

    def acknowledge(self, *, resend: bool = False) -> None:
        assert self.opened is not None
        if self.opened.phase in ("train", "statistics", "evaluate"):
            self.send(
                routes.ACK,
                Ack(
                    run=self.spec.run,
                    round=self.opened.round,
                    attempt=self.attempt,
                    phase=self.opened.phase,
                    step=self.next_step,
                    room=self.spec.window,
                    resend=resend,
                ),
            )

    def handle(self, sent: Sent) -> None:
        """Handle a message of the device."""
        received = self._gate.read(Message(sent.topic, sent.payload))
        assert received is not None, sent
        self._take(received)
        if received.route is routes.STATUS:  # the device subscribes to its own status
            self.port.deliver(sent.topic, sent.payload)

    def _take(self, received: Received) -> None:
        match received.message:
            case DeviceStatus() as status:
                self.statuses.append(status)
            case Profile() as profile:
                self.profiles.append(profile)
                self.on_profile(profile)
            case Features() as batch:
                self._on_features(batch)
            case Weights() as weights:
                self.tensors.append(weights)
            case RoundDone() as done:
                self.done.append(done)
                if (done.round, done.attempt) == self._current():
                    self._round_done = done
                    self._end_round()
            case Sync() as sync:
                self.syncs.append(sync)
                self._on_sync(sync)

    def _on_features(self, batch: Features) -> None:
        self.batches.append(batch)
        if (batch.round, batch.attempt) != self._current() or batch.step != self.next_step:
            return
        self.next_step += 1
        self.acknowledge()
        assert self.opened is not None
        if batch.phase == "evaluate" and self.next_step == self.steps:
            self.open_next()
        self._end_round()

    def _end_round(self) -> None:
        """End the round if all its batches and its round-done have been received."""
        done, opened = self._round_done, self.opened
        if done is not None and opened is not None and self.next_step == self.steps:
            self._round_done = None
            self.on_done(done)

    def _on_sync(self, sync: Sync) -> None:
        if sync.weights:
            assert self.held is not None
            tensors = select(self.held, sync.weights)
            for payload in pack_weights(self.spec.run, self.committed, self.attempt, tensors):
                self.send(routes.HELD_WEIGHTS, Weights.decode(payload))
        elif sync.soft_labels is not None:
            assert self.soft_labels is not None
            for payload in pack_rows(self.spec.run, self.attempt, self.soft_labels, sync.soft_labels):
                self.send(routes.SOFT_LABELS, routes.SOFT_LABELS.message.decode(payload))
        elif self.opened is not None:
            self.acknowledge(resend=True)

    def _part(self, steps: int, samples: int) -> Participant:
        part = {"cut": self.cut, "steps": steps, "base": self.committed, "samples": samples}
        fields = {**part, "fresh": self.fresh}
        return Participant(**{**fields, **self.participant})

    def _current(self) -> tuple[int, int] | None:
        return None if self.opened is None else (self.opened.round, self.attempt)


def other_weights(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Constant weights with the same names and shapes, which differ from all trained ones."""
    return {
        name: torch.full_like(tensor, 0.25 if tensor.is_floating_point() else 3)
        for name, tensor in tensors.items()
    }
