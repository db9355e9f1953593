# SPDX-License-Identifier: Apache-2.0
"""A device's conversation with its fleet. Every event is handled here, on one thread."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from zlib import crc32

from splitee.cli.signals import Stopped
from splitee.cli.systemd import feed_watchdog
from splitee.clock import Clock
from splitee.errors import (
    Dismissed,
    MalformedMessage,
    Rejected,
    SpliteeError,
    Stalled,
    Unwinding,
    VersionMismatch,
)
from splitee.log_limits import FirstFew, Reminder
from splitee.mqtt.events import Connected, Disconnected, Message, Overflow
from splitee.protocol import routes
from splitee.protocol.device_meter import DeviceMeter
from splitee.protocol.fleet import ErrorReport, Profile
from splitee.protocol.gate import EVENTS_AT_ONCE, Gate, Received
from splitee.protocol.rounds import Ack, Assignment, RoundOpen
from splitee.protocol.routes import Route
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.topics import PROTOCOL, Topics
from splitee_device.agent.last_received import LastReceived
from splitee_device.agent.phase import ActivePhase, Superseded
from splitee_device.agent.presence import DevicePort, Presence
from splitee_device.agent.requests import SYNC_AFTER, Requests

log = logging.getLogger(__name__)

LONGEST_SYNC_INTERVAL = 60.0  # the longest interval between two requests during a wait
SYNC_JITTER = 3.0  # seconds over which the first requests of many devices are spread, by their ids

SUBSCRIPTIONS = (
    routes.RUN,
    routes.ROUND,
    routes.SERVER_STATUS,
    routes.ASSIGNMENT,
    routes.PARTICIPATION,
    routes.ACK,
    routes.HELD_WEIGHTS,
    routes.SOFT_LABELS,
    routes.ERROR,
    routes.STATUS,
)
FATAL_ERRORS: dict[int, type[SpliteeError]] = {  # errors for the codes of fatal reports; otherwise Rejected
    VersionMismatch.exit_code: VersionMismatch,
    Dismissed.exit_code: Dismissed,
}


class RunChanged(Unwinding):
    """The fleet's server has opened another run, or changed the number of rounds of this one.

    Attributes:
        is_same_run: whether only its number of rounds has changed.
    """

    def __init__(self, before: RunSpec, spec: RunSpec) -> None:
        self.is_same_run = before.run == spec.run
        rounds = f"the run has {spec.rounds} rounds now, before {before.rounds}"
        super().__init__(rounds if self.is_same_run else "the server has opened another run")


class ServerGone(Unwinding):
    """The run is finished, and the server that should send something is gone."""


class Session:
    """One device's conversation with its fleet.

    Attributes:
        last_received: the last message of each kind from the fleet, and what follows from them.
        presence: what the device reports about itself.
        requests: what the device requests from the server.
        meter: counts what the device sends and receives.
    """

    def __init__(
        self,
        port: DevicePort,
        topics: Topics,
        device: str,
        instance: int,
        *,
        patience: float | None = None,
        stop: Callable[[], bool] = lambda: False,
        clock: Clock = time.monotonic,
    ) -> None:
        """`patience`: seconds without a message from the server before giving up; None: never."""
        self.device = device
        self.instance = instance
        self._port = port
        self._topics = topics
        self._patience = patience
        self._stop = stop
        self._clock = clock
        self._phase: ActivePhase | None = None
        self._needs_server = False
        self._overflowed = -SYNC_AFTER  # when messages to this device were last lost here
        self._log_reports = FirstFew()
        self._sync_after = SYNC_AFTER + crc32(device.encode()) % 1000 * SYNC_JITTER / 1000
        self._left: set[tuple[str, int]] = set()  # runs that this process has left, with their rounds
        self._guarded = ""  # the run whose assignments are checked
        self._accepts_cut: Callable[[int], bool] = lambda _cut: True
        self.last_received = LastReceived(instance, clock())
        self._gate = Gate(
            topics, SUBSCRIPTIONS, device=device, on_part=lambda _route, _device: self._on_part()
        )
        self.meter = port.meter = DeviceMeter(topics)
        rejected = self._gate.rejected.total
        self.presence = Presence(port, topics, device, instance, clock, rejected, traffic=self.meter.traffic)
        self.requests = Requests(port, topics, device, instance, clock, self.wait)
        self._handlers: dict[Route, Callable[[Any], None]] = {
            routes.RUN: self._on_run,
            routes.ROUND: self._on_round,
            routes.SERVER_STATUS: self._record,
            routes.PARTICIPATION: self._record,
            routes.ASSIGNMENT: self._on_assignment,
            routes.ACK: self._on_ack,
            routes.HELD_WEIGHTS: lambda weights: self.requests.on_weights(
                weights, self.last_received.assignment
            ),
            routes.SOFT_LABELS: self.requests.on_soft_labels,
            routes.ERROR: self._on_error,
            routes.STATUS: self.presence.on_own_status,
        }
        port.subscribe(*self._gate.filters)

    def await_run(self) -> RunSpec:
        """The run that the fleet's server offers.

        Raises:
            VersionMismatch: the server speaks another protocol.
            Stalled: no server within the patience.
        """
        self.wait(lambda: self.last_received.spec is not None, "a server to open a run")
        assert self.last_received.spec is not None
        return self.last_received.spec

    def guard_cuts(self, run: str, accepts_cut: Callable[[int], bool]) -> None:
        """From now on, ignore assignments of `run` to a cut that this device does not accept."""
        self._guarded, self._accepts_cut = run, accepts_cut
        last = self.last_received.assignment
        if last is not None and not self._is_allowed(last):
            log.warning("not followed: %s", self._refusal(last))
            self.last_received.assignment = None

    def join(self, profile: Profile) -> None:
        """Request to take part, and wait for the server's reply; a run that is over needs none.

        Raises:
            Rejected, Dismissed: the server refuses this device.
        """
        self.presence.introduce(profile)
        self.wait(
            lambda: self.last_received.is_joined or self.last_received.is_trained,
            "the server to take this device in",
        )

    @contextmanager
    def phase(self, spec: RunSpec, opened: RoundOpen) -> Iterator[ActivePhase]:
        """Enter the phase `opened`: it receives acks, and Superseded is raised once it no longer counts.

        Args:
            spec: the run's settings, as this device has adapted them.

        Raises:
            Superseded: this device no longer takes part in it.
        """
        last = self.last_received.part_in(opened)
        if last is None or last.part is None:
            raise Superseded
        self.meter.phase = opened.batches
        port, topics, last_ack = self._port, self._topics, self.last_received.ack
        self._phase = ActivePhase(
            port,
            topics,
            self.device,
            spec,
            opened,
            last.part,
            last.room,
            last_ack,
            self._while_sending,
        )
        try:
            yield self._phase
        finally:
            self._phase = None

    @contextmanager
    def needing_server(self) -> Iterator[None]:
        """Within it the device requests what only the server has. During training it waits for the server.

        Raises:
            ServerGone: the run is finished, and the server is gone.
        """
        self._needs_server = True
        try:
            self._check_server()
            yield
        finally:
            self._needs_server = False

    def wait(self, condition: Callable[[], bool], awaited: str) -> None:
        """Handle events until `condition` holds; log now and then what is awaited.

        A message to or from the server may have been lost. The device therefore sends a request after
        SYNC_AFTER without a reply, and then at growing intervals. The server's heartbeat is no reply. Time in
        which a slow link still carries the device's own messages does not count.

        Raises:
            Stalled: the server has sent nothing for as long as the patience allows; and what `pump` raises.
        """
        started = self._clock()
        reminder, pause = Reminder(), self._sync_after
        quiet, idle, last_reply = 0.0, self._idle(), self.last_received.last_reply
        while not condition():
            self.pump(0.5)
            quiet, idle = quiet + self._idle() - idle, self._idle()
            if self.last_received.last_reply != last_reply:
                quiet, last_reply = 0.0, self.last_received.last_reply
            now, last_seen = self._clock(), self.last_received.last_seen
            if reminder.due(now, started):
                hint = self._waiting_reason()
                log.info("waiting for %s (%.0f s)%s", awaited, now - started, hint and f"; {hint}")
            if quiet >= pause:
                self._sync()
                quiet, pause = 0.0, min(2 * pause, LONGEST_SYNC_INTERVAL)
            if self._patience is not None and now - max(last_seen, started) > self._patience:
                raise Stalled(f"waited {self._patience:.0f} s for {awaited}: is this fleet's server running?")

    def _idle(self) -> float:
        """Seconds, from some time on, in which nothing from this device was being sent to the broker."""
        return self._clock() - self._port.busy

    def drain(self) -> None:
        """Handle what has come, without waiting: at most EVENTS_AT_ONCE events, even if more come."""
        for _ in range(EVENTS_AT_ONCE):
            if not self.pump(0):
                return

    def drain_after_training(self, *, stay: bool) -> None:
        """Handle what has come since the run was over.

        Raises:
            RunChanged: the run goes on, or there is another run and the device is to `stay` for it.
        """
        try:
            self.drain()
        except RunChanged as change:
            if stay or change.is_same_run:
                raise

    def pump(self, timeout: float) -> bool:
        """Handle one event; False when none came within `timeout` seconds.

        Raises:
            Superseded: the phase under way no longer counts.
            ServerGone: see `needing_server`.
            RunChanged, Stopped, IdInUse, Rejected, Dismissed, VersionMismatch, BrokerRefused: as their names
                say.
        """
        if self._port.alive:
            feed_watchdog()
        if self._stop():
            raise Stopped
        event = self._port.receive(timeout)
        if isinstance(event, Connected):
            self._on_reconnected()
        elif isinstance(event, Disconnected):
            log.warning("connection lost (%s); reconnecting", event.reason)
            self.presence.update_systemd()
        elif isinstance(event, Overflow):
            if self._clock() - self._overflowed >= SYNC_AFTER:  # do not pass a flood on to the server
                self._overflowed = self._clock()
                self._sync()
        elif isinstance(event, Message):
            received = self._gate.read(event)
            if received is not None:
                self._gate.apply(received, self._dispatch)
        self.presence.check_identity()
        if self._phase is not None and self._phase.is_superseded(self.last_received):
            raise Superseded
        self._check_server()
        return event is not None

    def _check_server(self) -> None:
        if self._needs_server and self.last_received.is_finished and self.last_received.is_server_offline:
            raise ServerGone

    def _while_sending(self) -> None:
        """What must not wait for a slow link: the watchdog, a signal to stop, the status."""
        if self._port.alive:
            feed_watchdog()
        if self._stop():
            raise Stopped
        self.presence.publish_status_if_due()

    def _waiting_reason(self) -> str:
        """A hint for the log. Without a connection, the last status of the server is of no interest."""
        if not self._port.connected:
            return f"there is no connection to the broker {self._port.address}"
        return self.last_received.waiting_reason()

    def _on_part(self) -> None:
        """A part of a reply has come. Other messages wait behind it, so it counts as a sign of life."""
        self.requests.note_arriving()
        self.last_received.last_seen = self._clock()

    def _dispatch(self, received: Received) -> None:
        if received.route is not routes.RUN or not self._is_remembered(received):
            self._handlers[received.route](received.message)

    def _is_remembered(self, received: Received) -> bool:
        """Whether a run was left long ago, and only the broker still has it.

        A broker that was killed begins with what it last saved. The server publishes its run anew when it is
        back; until then its devices keep theirs, with what they have trained in it.
        """
        run = received.message
        return received.envelope.retained and (run.run, run.rounds) in self._left

    def _record(self, message: Any) -> None:
        self.last_received.add(message, self._clock())

    def _on_round(self, opened: RoundOpen) -> None:
        self._record(opened)
        self.presence.set_fleet_size(opened.participants)

    def _on_run(self, spec: RunSpec) -> None:
        if spec.protocol != PROTOCOL:
            raise VersionMismatch(
                f"the server speaks protocol {spec.protocol}, this device {PROTOCOL}: "
                "install the same release on both"
            )
        before = self.last_received.spec
        self._record(spec)
        if before is not None and (before.run, before.rounds) != (spec.run, spec.rounds):
            self._left.add((before.run, before.rounds))
            self._left.discard((spec.run, spec.rounds))
            raise RunChanged(before, spec)

    def _on_assignment(self, assignment: Assignment) -> None:
        """Raises MalformedMessage: its cut is one that this device does not accept, or it lacks a digest."""
        if assignment.held and assignment.digest is None:
            raise MalformedMessage("Assignment: weights are held, but their digest is missing")
        if not self._is_allowed(assignment):
            raise MalformedMessage(self._refusal(assignment), "foreign")
        self._record(assignment)

    def _is_allowed(self, assignment: Assignment) -> bool:
        return assignment.run != self._guarded or self._accepts_cut(assignment.cut)

    def _refusal(self, assignment: Assignment) -> str:
        return (
            f"the server cuts this device at {assignment.cut}, which it has not requested or its owner does "
            f"not allow: start it with --cut {assignment.cut} to allow it"
        )

    def _on_ack(self, ack: Ack) -> None:
        self._record(ack)
        if self._phase is not None:
            self._phase.on_ack(ack)

    def _on_error(self, report: ErrorReport) -> None:
        if report.instance not in (0, self.instance):
            return
        if not report.fatal:
            if self._log_reports.due():
                log.warning("the server reports: %s", report.message)
        else:
            raise FATAL_ERRORS.get(report.code, Rejected)(report.message)

    def _on_reconnected(self) -> None:
        self.presence.publish_status()
        self.presence.publish_profile()
        self._sync()

    def _sync(self) -> None:
        """Tell the server that its last message may have been lost; join again if it has not replied."""
        if self.last_received.spec is None or self.presence.profile is None:
            return
        self.requests.sync(self.last_received.spec.run)
        if not self.last_received.is_joined:
            self.presence.publish_profile()
