# SPDX-License-Identifier: Apache-2.0
"""A rank other than 0: it trains, observes and evaluates the batches of its devices."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from splitee.cli.signals import Stopped
from splitee.clock import Clock
from splitee.errors import BrokerRefused, ExitCode, MalformedMessage, RankLost, Reason, Unwinding
from splitee.mqtt.events import Connected, Event, Message, Overflow
from splitee.mqtt.port import Port
from splitee.networks.split import build_for
from splitee.protocol import routes
from splitee.protocol.gate import EVENTS_AT_ONCE, Gate, Received, Rejection
from splitee.protocol.retained import clear
from splitee.protocol.routes import Route
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.sender_limits import SenderLimits
from splitee.protocol.topics import Topics
from splitee_server.announcer import Announcer
from splitee_server.learning.fleet_model import FleetModel
from splitee_server.learning.initial.weights import InitialWeights
from splitee_server.members.members import Members
from splitee_server.members.traffic import FleetTraffic
from splitee_server.ranks.feature_subscriptions import FeatureSubscriptions
from splitee_server.ranks.group import Group
from splitee_server.ranks.messages import (
    POLL_EVERY,
    POLL_EVERY_IN_STEP,
    Acknowledge,
    Collect,
    Collected,
    End,
    Gone,
    GoOnWithout,
    JoinStep,
    Open,
    Opened,
    Progress,
    Report,
    encode,
    orders,
)
from splitee_server.ranks.state_transfer import pack, pack_score, receive_state, send_state, unpack
from splitee_server.rounds.batch_order import Order
from splitee_server.rounds.batch_work import BatchWork
from splitee_server.rounds.phase import DeviceProgress, Phase
from splitee_server.rounds.policy import Policy
from splitee_server.rounds.progress import Trained
from splitee_server.rounds.replies import Replies
from splitee_server.rounds.windows import open_windows

REPORT_EVERY = 0.02  # seconds between two messages about its progress


class RankPhase:
    """One phase at this rank: the work on its batches, and the replies to its devices."""

    def __init__(self, phase: Phase, work: BatchWork, replies: Replies, announcer: Announcer) -> None:
        self.phase = phase
        self.work = work
        self.replies = replies
        self.announce = announcer
        self._changed = set(phase.participants)

    def note(self, *devices: str) -> None:
        """The standings of these devices have changed, and are to be sent."""
        self._changed.update(devices)

    def standings(self) -> dict[str, DeviceProgress]:
        """Those of the devices that were noted since the last call; the first call returns all."""
        changed, self._changed = self._changed, set()
        return {device: self.phase.progress(device) for device in sorted(changed) if device in self.phase}


class Trainer:
    """Follows rank 0's orders until the run ends. It keeps nothing that outlives a phase."""

    def __init__(
        self,
        group: Group,
        port: Port,
        topics: Topics,
        policy: Policy,
        initial: InitialWeights | None,
        *,
        stop: Callable[[], bool],
        limits: SenderLimits,
        clock: Clock = time.monotonic,
    ) -> None:
        """`initial`: the run's initial weights; None: they come from the seed."""
        self._group = group
        self._port = port
        self._topics = topics
        self._policy = policy
        self._initial = initial
        self._stop = stop
        self._limits = limits
        self._clock = clock
        self._traffic = port.meter = FleetTraffic(topics, "")
        self._run: tuple[RunSpec, int] | None = None
        self._model: FleetModel
        self._current: RankPhase | None = None
        self._trained = Trained()
        self._refused: Counter[tuple[str, Reason]] = Counter()
        self._duplicates = 0
        self._subscriptions = FeatureSubscriptions(port, topics)
        self._is_over = False
        self._poll_every = POLL_EVERY  # seconds between two polls for orders, and to wait for an event
        self._poll_due = self._report_due = 0.0
        self._gate = Gate(
            topics,
            (routes.FEATURES,),
            admit=self._check_sender,
            on_rejected=self._on_rejected,
            passes=(BrokerRefused, RankLost, Unwinding),
        )
        self._handlers: Mapping[type, Callable] = {  # type: ignore[type-arg]
            Open: self._open,
            GoOnWithout: self._go_on_without,
            JoinStep: self._join_step,
            Acknowledge: self._acknowledge,
            Collect: self._collect,
            End: self._end,
        }

    def run(self) -> None:
        """Serve until rank 0 says that the run ends.

        Raises:
            Stopped: the process received a signal to stop.
            RankLost: another rank has failed.
        """
        while not self._is_over:
            self._handle_orders()
            for _ in range(EVENTS_AT_ONCE):
                if not self._handle_event(0):
                    break
            if not self._work_one():
                self._handle_event(self._poll_every)
            self._report_progress()

    # Orders

    def _handle_orders(self) -> None:
        if self._clock() < self._poll_due:
            return
        self._poll_due = self._clock() + self._poll_every
        for message in self._group.new_messages(0):
            order = orders.decode(message)
            self._handlers[type(order)](order)

    def _open(self, order: Open) -> None:
        spec, opened = RunSpec.decode(order.spec), order.opened
        if self._run != (spec, opened.attempt):
            network = build_for(spec)
            if self._initial is not None:
                self._initial.load_into(network)
            self._model, self._run = FleetModel(spec, network, self._initial), (spec, opened.attempt)
        model = self._model
        model.load_phase_state(unpack(self._group.receive(0)))
        for device in order.memories:
            model.load_training_state(device, unpack(self._group.receive(0)))
        self._traffic.phase = opened.batches
        announcer = Announcer(self._port, self._topics, opened.attempt, spec.run, clock=self._clock)
        turns: Order = model.order if opened.phase == "train" else "any"
        phase = Phase(
            opened,
            order.participants,
            order=turns,
            window=spec.window,
            windows=open_windows(
                opened,
                order.participants,
                spec,
                model.feature_shape,
                announcer.max_packet,
                self._policy.budget,
                order=turns,
            ),
            num_classes=spec.num_classes,
            clock=self._clock,
        )
        self._poll_every = POLL_EVERY_IN_STEP if turns == "joint" else POLL_EVERY
        if turns == "joint":
            phase.open_step(0)
        self._current = RankPhase(
            phase,
            BatchWork(spec, model, self._guard, self._clock, self._trained),
            Replies(model, Members(), announcer),
            announcer,
        )
        self._forget(self._subscriptions.set_devices(order.participants))
        for device in order.participants:  # their windows are here, not at rank 0
            self._current.replies.acknowledge(phase, device)
        self._report(Opened(order.number))

    def _go_on_without(self, order: GoOnWithout) -> None:
        if self._current is not None:
            phase = self._current.phase
            gone = tuple(device for device in order.devices if device in phase)
            unlocked = [device for device in map(phase.windows.drop, gone) if device is not None]
            phase.go_on_without(gone)
            for device in gone:
                self._model.forget(device)
            self._current.note(*unlocked)
            self._acknowledge_all(unlocked)
        self._forget(self._subscriptions.remove(order.devices))

    def _join_step(self, order: JoinStep) -> None:
        assert self._current is not None
        send_state(self._group, [0], self._model.part_of_step(range(*order.lanes)))
        self._model.follow_step(receive_state(self._group, 0))
        self._current.phase.open_step(order.step)

    def _acknowledge(self, order: Acknowledge) -> None:
        self._acknowledge_all((order.device,))

    def _acknowledge_all(self, devices: Iterable[str]) -> None:
        """Acknowledge participants' batches, and request missing ones again."""
        if self._current is None:
            return
        phase = self._current.phase
        for device in devices:
            if device in phase:
                self._current.replies.acknowledge(phase, device, resend=phase.lacks(device))

    def _collect(self, order: Collect) -> None:
        assert self._current is not None
        phase = self._current.phase
        self._report_progress(now=True)
        for device in order.devices:
            self._group.send(0, self._result_of(phase, device))
        self._report(Collected({device: self._traffic.of(device) for device in phase.scores}))

    def _result_of(self, phase: Phase, device: str) -> bytes:
        if phase.kind == "evaluate":
            return pack_score(phase.scores[device])
        return pack(
            self._model.round_result(device)
            if phase.kind == "train"
            else self._model.observed_statistics(device)
        )

    def _end(self, _order: End) -> None:
        self._is_over = True
        self._report(Gone())

    # Events

    def _handle_event(self, timeout: float) -> bool:
        """Handle one event, after waiting at most `timeout` seconds; False: none came."""
        if self._stop():
            raise Stopped
        for device, count in self._limits.take_refused().items():
            self._refused[device, "flood"] += count
            self._subscriptions.remove([device])
        event = self._port.receive(timeout)
        if event is None:
            return False
        self._dispatch(event)
        return True

    def _dispatch(self, event: Event) -> None:
        if isinstance(event, Connected) and self._current is not None:
            self._acknowledge_all(self._current.phase.participants)
        elif isinstance(event, Overflow) and self._current is not None:
            for device in self._current.phase.late():
                self._current.replies.request_again(self._current.phase, device)
        elif isinstance(event, Message) and event.payload:
            received = self._gate.read(event)
            if received is not None:
                self._gate.apply(received, self._on_features)

    def _check_sender(self, _route: Route, device: str) -> None:
        if device not in self._subscriptions:
            raise MalformedMessage("from a device that another rank serves, or none", "unknown")

    def _on_features(self, received: Received) -> None:
        device, current = received.device, self._current
        if current is None or device not in current.phase:
            return
        phase = current.phase
        taken = current.work.accept(phase, device, phase.participants[device].cut, received.message)
        current.note(device)
        if taken == "duplicate":
            self._duplicates += 1
            current.replies.acknowledge(phase, device)
        elif taken == "gap":
            current.replies.request_again(phase, device)

    def _work_one(self) -> bool:
        if self._current is None:
            return False
        phase = self._current.phase
        worked = self._current.work.work_one(phase)
        if worked is None:
            return False
        for device in (worked.device, worked.unlocked):
            if device is not None and device in phase:
                self._current.note(device)
                self._current.replies.acknowledge(phase, device)
        if phase.is_step_complete():  # others may wait for it
            self._report_progress(now=True)
        return True

    def _guard(self, device: str, action: Callable[[], None]) -> bool:
        return self._gate.guard(routes.FEATURES, device, action)

    def _on_rejected(self, rejection: Rejection) -> None:
        """Count it for rank 0, and tell the device why, a few times."""
        device, reason = rejection.device, rejection.error.reason
        self._refused[device, reason] += 1
        if reason == "retained":
            clear(self._port, [routes.FEATURES.topic(self._topics, device)])
        if rejection.is_logged and self._current is not None:
            message = f"{routes.FEATURES.leaf}: {rejection.error}"
            self._current.announce.error(device, ExitCode.REJECTED, message)

    def _forget(self, devices: frozenset[str]) -> None:
        for device in devices:
            self._gate.forget_parts(device)

    # Reports

    def _report_progress(self, *, now: bool = False) -> None:
        if self._current is None or (not now and self._clock() < self._report_due):
            return
        self._report_due = self._clock() + REPORT_EVERY
        standings = self._current.standings()
        refused, self._refused = self._refused, Counter()
        duplicates, self._duplicates = self._duplicates, 0
        if standings or refused or duplicates:
            counted = [(device, reason, count) for (device, reason), count in refused.items()]
            self._report(Progress(standings, counted, duplicates, self._trained))

    def _report(self, report: Report) -> None:
        self._group.post(0, encode(report))
