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
from splitee_device.agent.heard import Heard
from splitee_device.agent.phase import PhaseUnderWay, Superseded
from splitee_device.agent.presence import DevicePort, Presence
from splitee_device.agent.requests import SYNC_AFTER, Requests

log = logging.getLogger(__name__)

SYNC_SELDOM = 60.0  # the longest interval between two requests during a wait
SPREAD = 3.0  # seconds over which the first requests of many devices are spread, by their ids

READ = (
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
FATAL: dict[int, type[SpliteeError]] = {  # errors for the codes of fatal reports; otherwise Rejected
    VersionMismatch.exit_code: VersionMismatch,
    Dismissed.exit_code: Dismissed,
}


class RunChanged(Unwinding):
    """The fleet's server has opened another run, or changed the number of rounds of this one.

    Attributes:
        goes_on: it is the same run.
    """

    def __init__(self, before: RunSpec, spec: RunSpec) -> None:
        self.goes_on = before.run == spec.run
        rounds = f"the run has {spec.rounds} rounds now, before {before.rounds}"
        super().__init__(rounds if self.goes_on else "the server has opened another run")


class ServerGone(Unwinding):
    """The run is finished, and the server that should send something is gone."""


class Session:
    """One device's conversation with its fleet.

    Attributes:
        heard: what the fleet has sent.
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
        self._phase: PhaseUnderWay | None = None
        self._needs_server = False
        self._overflowed = -SYNC_AFTER  # when messages to this device were last lost here
        self._log_reports = FirstFew()
        self._sync_after = SYNC_AFTER + crc32(device.encode()) % 1000 * SPREAD / 1000
        self._guarded = ""  # the run whose assignments are checked
        self._may_be_cut_at: Callable[[int], bool] = lambda _cut: True
        self.heard = Heard(instance, clock())
        self._gate = Gate(topics, READ, device=device, on_part=lambda _route, _device: self._on_part())
        self.meter = port.meter = DeviceMeter(topics)
        rejected = self._gate.rejected.total
        self.presence = Presence(port, topics, device, instance, clock, rejected, traffic=self.meter.traffic)
        self.requests = Requests(port, topics, device, instance, clock, self.wait)
        self._owners: dict[Route, Callable[[Any], None]] = {
            routes.RUN: self._on_run,
            routes.ROUND: self._on_round,
            routes.SERVER_STATUS: self._hear,
            routes.PARTICIPATION: self._hear,
            routes.ASSIGNMENT: self._on_assignment,
            routes.ACK: self._on_ack,
            routes.HELD_WEIGHTS: lambda weights: self.requests.on_weights(weights, self.heard.assignment),
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
        self.wait(lambda: self.heard.spec is not None, "a server to open a run")
        assert self.heard.spec is not None
        return self.heard.spec

    def guard_cuts(self, run: str, may_be_cut_at: Callable[[int], bool]) -> None:
        """From now on, ignore assignments of `run` to a cut that this device does not accept."""
        self._guarded, self._may_be_cut_at = run, may_be_cut_at
        told = self.heard.assignment
        if told is not None and not self._is_allowed(told):
            log.warning("not followed: %s", self._refusal(told))
            self.heard.assignment = None

    def join(self, profile: Profile) -> None:
        """Ask to take part, and wait for the server's reply; a run that is over needs none.

        Raises:
            Rejected, Dismissed: the server refuses this device.
        """
        self.presence.introduce(profile)
        self.wait(lambda: self.heard.has_reply or self.heard.is_trained, "the server to take this device in")

    @contextmanager
    def phase(self, spec: RunSpec, opened: RoundOpen) -> Iterator[PhaseUnderWay]:
        """Enter the phase `opened`: it receives acks, and Superseded is raised once it no longer counts.

        Args:
            spec: the run's settings, as this device has adapted them.

        Raises:
            Superseded: this device no longer takes part in it.
        """
        told = self.heard.part_in(opened)
        if told is None or told.part is None:
            raise Superseded
        self.meter.phase = opened.batches
        port, topics, last_ack = self._port, self._topics, self.heard.ack
        self._phase = PhaseUnderWay(
            port,
            topics,
            self.device,
            spec,
            opened,
            told.part,
            told.room,
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

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        """Handle events until `condition` holds; log now and then what is awaited.

        A message to or from the server may have been lost. The device therefore sends a request after
        SYNC_AFTER without a reply, and then at growing intervals. The server's heartbeat is no reply. Time in
        which a slow link still carries the device's own messages does not count.

        Raises:
            Stalled: the server has sent nothing for as long as the patience allows; and what `pump` raises.
        """
        started = self._clock()
        reminder, pause = Reminder(), self._sync_after
        quiet, idle, last_reply = 0.0, self._idle(), self.heard.last_reply
        while not condition():
            self.pump(0.5)
            quiet, idle = quiet + self._idle() - idle, self._idle()
            if self.heard.last_reply != last_reply:
                quiet, last_reply = 0.0, self.heard.last_reply
            now, last_word = self._clock(), self.heard.last_word
            if reminder.due(now, started):
                hint = self._why_nothing_comes()
                log.info("waiting for %s (%.0f s)%s", what, now - started, hint and f"; {hint}")
            if quiet >= pause:
                self._sync()
                quiet, pause = 0.0, min(2 * pause, SYNC_SELDOM)
            if self._patience is not None and now - max(last_word, started) > self._patience:
                raise Stalled(f"waited {self._patience:.0f} s for {what}: is this fleet's server running?")

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
            if stay or change.goes_on:
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
            self.presence.tell_systemd()
        elif isinstance(event, Overflow):
            if self._clock() - self._overflowed >= SYNC_AFTER:  # do not pass a flood on to the server
                self._overflowed = self._clock()
                self._sync()
        elif isinstance(event, Message):
            received = self._gate.read(event)
            if received is not None:
                self._gate.apply(received, self._hand_on)
        self.presence.check_identity()
        if self._phase is not None and self._phase.is_superseded(self.heard):
            raise Superseded
        self._check_server()
        return event is not None

    def _check_server(self) -> None:
        if self._needs_server and self.heard.is_finished and self.heard.is_alone:
            raise ServerGone

    def _while_sending(self) -> None:
        """What must not wait for a slow link: the watchdog, a signal to stop, the status."""
        if self._port.alive:
            feed_watchdog()
        if self._stop():
            raise Stopped
        self.presence.say_again()

    def _why_nothing_comes(self) -> str:
        """A hint for the log. Without a connection, the last status of the server is of no interest."""
        if not self._port.connected:
            return f"there is no connection to the broker {self._port.address}"
        return self.heard.whom_it_waits_for()

    def _on_part(self) -> None:
        """A part of a reply has come. Other messages wait behind it, so it counts as a sign of life."""
        self.requests.note_arriving()
        self.heard.last_word = self._clock()

    def _hand_on(self, received: Received) -> None:
        self._owners[received.route](received.message)

    def _hear(self, message: Any) -> None:
        self.heard.add(message, self._clock())

    def _on_round(self, opened: RoundOpen) -> None:
        self._hear(opened)
        self.presence.share(opened.participants)

    def _on_run(self, spec: RunSpec) -> None:
        if spec.protocol != PROTOCOL:
            raise VersionMismatch(
                f"the server speaks protocol {spec.protocol}, this device {PROTOCOL}: "
                "install the same release on both"
            )
        before = self.heard.spec
        self._hear(spec)
        if before is not None and (before.run, before.rounds) != (spec.run, spec.rounds):
            raise RunChanged(before, spec)

    def _on_assignment(self, assignment: Assignment) -> None:
        """Raises MalformedMessage: its cut is one that this device does not accept."""
        if not self._is_allowed(assignment):
            raise MalformedMessage(self._refusal(assignment), "foreign")
        self._hear(assignment)

    def _is_allowed(self, assignment: Assignment) -> bool:
        return assignment.run != self._guarded or self._may_be_cut_at(assignment.cut)

    def _refusal(self, assignment: Assignment) -> str:
        return (
            f"the server cuts this device at {assignment.cut}, which it has not requested or its owner does "
            f"not allow: start it with --cut {assignment.cut} to allow it"
        )

    def _on_ack(self, ack: Ack) -> None:
        self._hear(ack)
        if self._phase is not None:
            self._phase.on_ack(ack)

    def _on_error(self, report: ErrorReport) -> None:
        if report.instance not in (0, self.instance):
            return
        if not report.fatal:
            if self._log_reports.due():
                log.warning("the server reports: %s", report.message)
        else:
            raise FATAL.get(report.code, Rejected)(report.message)

    def _on_reconnected(self) -> None:
        self.presence.publish_status()
        self.presence.publish_profile()
        self._sync()

    def _sync(self) -> None:
        """Tell the server that its last message may have been lost; join again if it has not replied."""
        if self.heard.spec is None or self.presence.profile is None:
            return
        self.requests.sync(self.heard.spec.run)
        if not self.heard.has_reply:
            self.presence.publish_profile()
