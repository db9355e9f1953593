"""What a device has heard from its fleet, and how it waits: every event is handled here, on one thread."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from msgspec.structs import replace
from torch import Tensor

from splitee.cli.signals import Stopped
from splitee.cli.systemd import notify
from splitee.errors import BrokerRefused, IdInUse, MalformedMessage, Rejected, Stalled, VersionMismatch
from splitee.mqtt.events import Connected, Disconnected, Message
from splitee.mqtt.link import Link
from splitee.protocol.fleet import DeviceStatus, ErrorReport, Profile, ServerStatus
from splitee.protocol.parts import Assembler
from splitee.protocol.rounds import Ack, Assignment, Commit, RoundOpen, SoftLabelRows, Sync, Weights
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.topics import PROTOCOL, Topics
from splitee.training.soft_labels import SoftLabels, SoftLabelsAssembler
from splitee.training.weights import WeightsAssembler
from splitee_device.agent.outbox import Outbox
from splitee_device.machine.hardware import temperature

log = logging.getLogger(__name__)

STATUS_EVERY = 1.0  # seconds
SYNC_AFTER = 15.0  # seconds without a word from the server before the device asks
REMIND_EVERY = 30.0  # seconds between lines that say what is waited for
EVENTS = 256  # that are handled between two batches, at most: a flood does not keep a device from training
ENDED = ("release", "finished")  # phases of a run that trains no more
LOGGED = 10  # malformed messages that are logged; all are counted


class Superseded(Exception):
    """The server has opened another round, or this one anew; what was under way no longer counts."""


class RunChanged(Exception):
    """The fleet's server has opened another run."""


def offline(topics: Topics, device: str, instance: int) -> tuple[str, bytes]:
    """The last will and the farewell: what stays behind of a device that is gone."""
    return topics.device(device, "status"), DeviceStatus(state="offline", instance=instance).encode()


class Session:
    """One device's view of its fleet. The link's thread only enqueues; all else runs on the caller's."""

    def __init__(
        self,
        link: Link,
        topics: Topics,
        device: str,
        instance: int,
        *,
        patience: float | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """`patience`: seconds without a word from the server before giving up; None: never."""
        self.link = link
        self.device = device
        self.instance = instance
        self.spec: RunSpec | None = None
        self.round: RoundOpen | None = None
        self.commit: Commit | None = None
        self.plan: Assignment | None = None
        self.ack: Ack | None = None
        self.profile: Profile | None = None
        self.outbox: Outbox | None = None
        self.under_way: RoundOpen | None = None
        self.arrival: WeightsAssembler | None = None  # of the client network that the device has asked for
        self.soft_arrival: SoftLabelsAssembler | None = None
        self.say_done: Callable[[], None] | None = None  # said, and said again, until the round's commit
        self._parts = Assembler()
        self._topics = topics
        self._patience = patience
        self._stop = stop
        self._server: ServerStatus | None = None
        self._status = DeviceStatus(state="online", instance=instance)
        self._status_due = 0.0
        self._seen_myself = False
        self._rejected = 0  # malformed messages
        self._heard = time.monotonic()
        link.subscribe(
            topics.run,
            topics.round,
            topics.commit,
            topics.server_status,
            self.topic("inbox/#"),
            self.topic("status"),
        )

    def topic(self, leaf: str) -> str:
        return self._topics.device(self.device, leaf)

    def await_run(self) -> RunSpec:
        """The run that the fleet's server offers.

        Raises:
            VersionMismatch: the server speaks another protocol.
            Stalled: no server within the patience.
        """
        self.wait(lambda: self.spec is not None, "a server to open a run")
        assert self.spec is not None
        return self.spec

    def join(self, profile: Profile) -> None:
        """Ask to take part, and wait for the server's word; a run that is over needs none.

        Raises:
            Rejected: the server does not take this device.
        """
        self.profile = profile
        self._publish_profile()
        self.wait(lambda: self._answered() or self._is_at(ENDED), "the server to take this device in")

    def introduce(self, **changed: Any) -> None:
        """Publish the profile again, with these fields changed."""
        assert self.profile is not None
        self.profile = replace(self.profile, **changed)
        self._publish_profile()

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        """Handle events until `condition`; says now and then what is waited for."""
        started = reminded = asked = time.monotonic()
        while not condition():
            self.pump(0.5)
            now = time.monotonic()
            if now - reminded >= REMIND_EVERY:
                log.info("waiting for %s (%.0f s)%s", what, now - started, self._whom())
                reminded = now
            if now - max(self._heard, asked) >= SYNC_AFTER:
                self._ask()
                asked = now
            if self._patience is not None and now - max(self._heard, started) > self._patience:
                raise Stalled(f"waited {self._patience:.0f} s for {what}: is this fleet's server running?")

    def drain(self) -> None:
        """Handle what has come, without waiting; no more than EVENTS, however much more comes."""
        for _ in range(EVENTS):
            if not self.pump(0):
                return

    def pump(self, timeout: float) -> bool:
        """Handle one event; False when none came within `timeout` seconds.

        Raises:
            Superseded: what is under way no longer counts.
            RunChanged, Stopped, IdInUse, Rejected, VersionMismatch, BrokerRefused: as their names say.
        """
        if self.link.alive:
            notify("WATCHDOG=1")  # this thread and the link's both live
        if self._stop():
            raise Stopped
        event = self.link.receive(timeout)
        if isinstance(event, Connected):
            self._reconnected()
        elif isinstance(event, Disconnected):
            log.warning("connection lost (%s); reconnecting", event.reason)
        elif isinstance(event, Message):
            try:
                self._handle(event)
            except MalformedMessage as error:
                self._reject(event.topic, error)
        if self.link.refused and not self._seen_myself:
            raise BrokerRefused(
                f"broker {self.link.address} lets this client in, but not as {self.device!r}: "
                "is its certificate or account another device's?"
            )
        self._check_superseded()
        return event is not None

    def say(
        self, doing: str, number: int, step: int = 0, steps: int = 0, loss: float | None = None, **sent: int
    ) -> None:
        """Publish the status, about once a second, and at once when what the device does has changed.

        Args:
            sent: `batches` and `bytes` published so far.
        """
        changed = (doing, number) != (self._status.doing, self._status.round)
        self._status = DeviceStatus(
            state="online",
            instance=self.instance,
            doing=doing,  # type: ignore[arg-type]
            round=number,
            step=step,
            steps=steps,
            loss=loss,
            rejected=self._rejected,
            time=time.time(),
            **sent,
        )
        if changed or time.monotonic() >= self._status_due:
            self._publish_status()

    def finish_round(self, say_done: Callable[[], None]) -> None:
        """Say round-done, and again whenever the server may have missed it."""
        self.say_done = say_done
        say_done()

    def fetch_weights(self, like: Mapping[str, Tensor], plan: Assignment) -> dict[str, Tensor]:
        """The client network that the server holds for this device, a message at a time.

        Args:
            like: tensors of the names, shapes and types that it has.
        """
        assert plan.digest is not None
        arrival = self.arrival = WeightsAssembler(like)
        try:
            while arrival.missing:
                names = tuple(arrival.next_names())
                self._ask_for(
                    Sync(run=plan.run, instance=self.instance, weights=names),
                    lambda names=names: arrival.tensors.keys() >= set(names),  # type: ignore[misc]
                    "this device's network from the server",
                )
                try:
                    if not arrival.missing:
                        arrival.check(plan.digest)
                except MalformedMessage as error:
                    self._reject(self.topic("inbox/weights"), error)
        finally:
            self.arrival = None
        return arrival.tensors

    def fetch_soft_labels(self, arrival: SoftLabelsAssembler) -> SoftLabels:
        """The soft labels that the server holds for this device, a message at a time."""
        self.soft_arrival = arrival
        try:
            while not arrival.is_whole:
                row = arrival.next_row
                self._ask_for(
                    Sync(run=arrival.run, instance=self.instance, soft_labels=row),
                    lambda row=row: arrival.next_row > row,  # type: ignore[misc]
                    "this device's soft labels from the server",
                )
        finally:
            self.soft_arrival = None
        return arrival.labels()

    def _ask_for(self, wish: Sync, has_come: Callable[[], bool], what: str) -> None:
        """Ask for something, and wait for it as long as an answer may take."""
        self.link.publish(self.topic("sync"), wish.encode())
        until = time.monotonic() + SYNC_AFTER
        self.wait(lambda: has_come() or time.monotonic() > until, what)

    def _check_superseded(self) -> None:
        mine, current = self.under_way, self.round
        if mine is None or current is None:
            return
        if phase_key(current) == phase_key(mine) and self.device in current.participants:
            return
        if self.say_done is None or current.attempt != mine.attempt:
            raise Superseded

    def _handle(self, message: Message) -> None:
        topic, payload = message.topic, message.payload
        leaf = topic.removeprefix(self.topic(""))
        if topic == self._topics.run:
            self._on_run(RunSpec.decode(payload))
        elif topic == self._topics.round:
            self.round = RoundOpen.decode(payload)
            self._heard = time.monotonic()
        elif topic == self._topics.commit:
            self.commit = Commit.decode(payload)
        elif topic == self._topics.server_status:
            self._on_server(ServerStatus.decode(payload))
        elif leaf == "inbox/ack":
            self._on_ack(Ack.decode(payload))
        elif leaf == "inbox/plan":
            self.plan = Assignment.decode(payload)
        elif leaf == "inbox/weights":
            self._on_weights(payload)
        elif leaf == "inbox/soft-labels":
            self._on_soft_labels(payload)
        elif leaf == "inbox/error":
            self._on_error(ErrorReport.decode(payload))
        elif leaf == "status":
            self._on_own_status(DeviceStatus.decode(payload))

    def _reject(self, topic: str, error: MalformedMessage) -> None:
        self._rejected += 1
        if self._rejected <= LOGGED:
            last = "; further ones are only counted" if self._rejected == LOGGED else ""
            log.warning("%s: ignored: %s%s", topic, error, last)

    def _on_run(self, spec: RunSpec) -> None:
        if spec.protocol != PROTOCOL:
            raise VersionMismatch(
                f"the server speaks protocol {spec.protocol}, this device {PROTOCOL}: "
                "install one release on both"
            )
        before, self.spec = self.spec, spec
        if before is not None and before.run != spec.run:
            raise RunChanged

    def _on_server(self, status: ServerStatus) -> None:
        self._server = status
        if status.state == "online":
            self._heard = time.monotonic()

    def _on_ack(self, ack: Ack) -> None:
        self._heard = time.monotonic()
        self.ack = ack
        if self.outbox is not None:
            self.outbox.acknowledge(ack)
        if ack.resend and self.say_done is not None:
            self.say_done()

    def _on_weights(self, payload: bytes) -> None:
        whole = self._parts.add("server", payload)
        if whole is None:
            return
        message, plan = Weights.decode(whole), self.plan
        if self.arrival is None or plan is None:
            return
        if (message.run, message.attempt, message.round) == (plan.run, plan.attempt, plan.committed):
            self.arrival.add(message)

    def _on_soft_labels(self, payload: bytes) -> None:
        whole = self._parts.add("server", payload)
        if whole is None:
            return
        message = SoftLabelRows.decode(whole)
        if self.soft_arrival is not None:
            self.soft_arrival.add(message)

    def _on_error(self, report: ErrorReport) -> None:
        if report.instance not in (0, self.instance):
            return
        if not report.fatal:
            log.warning("the server reports: %s", report.message)
        elif report.code == VersionMismatch.exit_code:
            raise VersionMismatch(report.message)
        else:
            raise Rejected(report.message)

    def _on_own_status(self, status: DeviceStatus) -> None:
        if status.instance == self.instance:
            self._seen_myself = True
            if status.state == "offline":  # our own will, of a connection that the broker thought dead
                self._publish_status()
        elif self._seen_myself and status.state == "online" and status.instance > self.instance:
            raise IdInUse(
                f"another process has started with the id {self.device!r}: each device needs its own"
            )

    def _reconnected(self) -> None:
        self._publish_status()
        self._publish_profile()
        self._ask()

    def _ask(self) -> None:
        """Tell the server that its last word may have been lost."""
        if self.spec is None or self.profile is None:
            return
        sync = Sync(run=self.spec.run, instance=self.instance)
        self.link.publish(self.topic("sync"), sync.encode())
        if not self._answered():
            self._publish_profile()

    def _publish_status(self) -> None:
        degrees = temperature().value
        status = replace(self._status, temperature=degrees if isinstance(degrees, float) else None)
        self.link.publish(self.topic("status"), status.encode(), retain=True)
        self._status_due = time.monotonic() + STATUS_EVERY
        notify(f"STATUS={_in_words(self._status)}")

    def _publish_profile(self) -> None:
        if self.profile is not None:
            self.link.publish(self.topic("profile"), self.profile.encode(), retain=True)

    def _answered(self) -> bool:
        return self.plan is not None and self.plan.instance == self.instance

    @property
    def is_finished(self) -> bool:
        """Whether the run is over, and its models are released."""
        return self._is_at(("finished",))

    def _is_at(self, phases: tuple[str, ...]) -> bool:
        current, spec = self.round, self.spec
        return (
            current is not None and spec is not None and current.run == spec.run and current.phase in phases
        )

    def _whom(self) -> str:
        if self._server is None or self._server.state == "offline":
            return "; the server is offline"
        if self._server.waiting_for:
            return "; the server waits for " + ", ".join(self._server.waiting_for[:5])
        return ""


def phase_key(opened: RoundOpen) -> tuple[str, int, int, str]:
    """What tells one opening of one phase from every other."""
    return opened.run, opened.attempt, opened.round, opened.phase


def _in_words(status: DeviceStatus) -> str:
    """What `systemctl status` shows."""
    words = f"round {status.round}: {status.doing}"
    if status.steps:
        words += f", step {status.step} of {status.steps}"
    return words if status.loss is None else f"{words}, loss {status.loss:.4f}"
