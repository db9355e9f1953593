# SPDX-License-Identifier: Apache-2.0
"""What the server publishes: retained messages, messages to one device, and its claim on the fleet."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable, Mapping
from math import inf
from typing import TYPE_CHECKING

from msgspec.structs import replace

from splitee.cli.words import size
from splitee.clock import Clock
from splitee.errors import ConfigError, ExitCode, IdInUse
from splitee.mqtt.events import Message
from splitee.mqtt.port import Port
from splitee.protocol import routes
from splitee.protocol.accuracies import ConfusionMatrix
from splitee.protocol.encoding import JsonMessage
from splitee.protocol.fleet import (
    DeviceFigures,
    DismissalReply,
    ErrorReport,
    Metrics,
    ServerClaim,
    ServerStatus,
)
from splitee.protocol.gate import Gate, Received
from splitee.protocol.parts import publish_in_parts
from splitee.protocol.retained import retained_topics
from splitee.protocol.rounds import Ack, Assignment, Commit, Participant, Participation, RoundOpen
from splitee.protocol.routes import LARGEST_WHOLE, Route
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.topics import Topics

if TYPE_CHECKING:  # members.py needs torch, and `splitee serve` does without
    from splitee_server.members.members import Member

log = logging.getLogger(__name__)

HEARTBEAT = 5.0  # seconds between two server/status
DELIVERY_PART = 64 << 10  # bytes of a part: the server does not know how fast a device's link is
REPLY_TIMEOUT = 1.0  # seconds that a running server has to reply, if the claim does not come back
MIN_WAIT, ROUND_TRIPS = 0.25, 4  # seconds, and round trips, that it has after the claim came back
LOST_AFTER = 2.5 * HEARTBEAT  # seconds without a message after which a server that was online counts as gone


def offline_status(topics: Topics, instance: int) -> tuple[str, bytes]:
    """The last will, and the offline message of a server that stops."""
    return topics.server_status, ServerStatus(state="offline", instance=instance).encode()


def claim_fleet(
    port: Port, topics: Topics, instance: int, *, brokers: int = 1, clock: Clock = time.monotonic
) -> None:
    """Make sure that no other server serves this fleet.

    Each broker returns the claim after its retained messages. Another server then has ROUND_TRIPS times the
    claim's round trip, at least MIN_WAIT seconds, to reply. If a server claims the fleet later, this one
    repeats its claim.

    Args:
        brokers: number of brokers that the port is connected to.

    Raises:
        IdInUse: another server serves the fleet.
    """
    gate = Gate(topics, (routes.SERVER_STATUS, routes.SERVER_CLAIM))
    claim = ServerClaim(instance=instance).encode()
    port.subscribe(*gate.filters)
    port.publish(topics.server_claim, claim)
    started = clock()
    until, echoes, suspected = started + REPLY_TIMEOUT, 0, False
    while (left := until - clock()) > 0:
        event = port.receive(left)
        received = gate.read(event) if isinstance(event, Message) else None
        if received is None:
            continue
        if received.message.instance == instance:
            echoes += received.route is routes.SERVER_CLAIM
            if echoes == brokers and not suspected:
                until = clock() + max(MIN_WAIT, ROUND_TRIPS * (clock() - started))
        elif _is_taken(received, instance):
            raise IdInUse(
                f"another server serves fleet {topics.fleet!r} at this broker: "
                "stop it, or take another --fleet"
            )
        elif received.route is routes.SERVER_CLAIM:
            port.publish(topics.server_claim, claim)
        elif received.message.state == "online":
            log.info("another server was online; waiting %.0f s for a message from it", LOST_AFTER)
            until, suspected = clock() + LOST_AFTER, True
        else:
            until = min(until, clock() + REPLY_TIMEOUT)


def _is_taken(received: Received, instance: int) -> bool:
    """Whether another server runs or claimed the fleet earlier; a retained status may be outdated."""
    if received.route is routes.SERVER_CLAIM:
        return bool(received.message.instance < instance)
    return received.message.state == "online" and not received.envelope.retained


class Announcer:
    """Publishes the server's messages, and keeps the retained ones to publish them again."""

    def __init__(
        self, port: Port, topics: Topics, instance: int, run: str, *, clock: Clock = time.monotonic
    ) -> None:
        """`instance`: of the server; also the attempt number of the rounds that it opens."""
        self._port = port
        self._topics = topics
        self._clock = clock
        self._instance = instance
        self._run = run
        self._retained: dict[str, bytes] = {}  # by topic
        self._published_at: dict[str, float] = {}  # when
        self._heartbeat_due = 0.0

    @property
    def max_packet(self) -> int:
        """Bytes of the largest payload that the broker takes."""
        return self._port.max_packet

    def run(self, spec: RunSpec) -> None:
        """Publish the run if any of its settings has changed.

        Raises ConfigError: the broker takes no packet that is large enough for the names of its classes.
        """
        taken = len(spec.encode())
        if taken > self.max_packet:
            raise ConfigError(
                f"the {len(spec.class_names)} classes of this run make a message of {size(taken)}, and the "
                f"broker takes at most {size(self.max_packet)}: raise its limit, or shorten the names"
            )
        self._retain(routes.RUN, spec, repeat_after=inf)

    def round(self, opened: RoundOpen) -> None:
        self._retain(routes.ROUND, opened)

    def participation(
        self,
        device: str,
        opened: RoundOpen,
        part: Participant | None,
        room: int = 0,
        *,
        repeat_after: float = 0.0,
    ) -> None:
        """A device's part in a phase; None: it is dropped from it. `repeat_after`: as in `_retain`."""
        message = Participation(
            run=opened.run,
            round=opened.round,
            attempt=opened.attempt,
            phase=opened.batches,
            part=part,
            room=room,
        )
        self._retain(routes.PARTICIPATION, message, device, repeat_after=repeat_after)

    def commit(self, number: int, weights_sha256: str) -> None:
        """Round `number` is final."""
        self._retain(
            routes.COMMIT,
            Commit(run=self._run, round=number, attempt=self._instance, weights_sha256=weights_sha256),
        )

    def metrics(
        self, metrics: Metrics, dismissed: Collection[str], confusions: Mapping[str, ConfusionMatrix]
    ) -> None:
        """A round's figures: those of each device that was not dismissed, then those of the fleet.

        Recalls of classes are left out if they are too large for the broker.

        `confusions`: by device, as far as they are known.
        """
        for device, figures in metrics.devices.items():
            if device in dismissed:
                continue
            message = DeviceFigures(
                run=metrics.run, round=metrics.round, figures=figures, confusion=confusions.get(device)
            )
            self._retain(routes.FIGURES, message, device, repeat_after=inf)
        of_fleet = replace(metrics, devices={})
        if len(of_fleet.encode()) > self.max_packet:
            of_fleet = replace(of_fleet, fleet=replace(metrics.fleet, class_recalls=()))
        self._retain(routes.METRICS, of_fleet)

    def overview(self, route: Route, message: JsonMessage, device: str = "") -> None:
        """Publish a message for viewers, if it has changed and is small enough for every broker."""
        payload = message.encode()
        if len(payload) <= min(LARGEST_WHOLE, self.max_packet):
            self._retain_payload(route.topic(self._topics, device), payload, repeat_after=inf)
        else:
            log.debug("%s is too large to be published", route.topic(self._topics, device))

    def assignment(
        self, member: Member, *, held: bool, first: str | None, fresh: bool, repeat_after: float = 0.0
    ) -> None:
        """Publish a device's assignment.

        Args:
            held, first, fresh: as in `Assignment`.
            repeat_after: as in `_retain`.
        """
        assignment = Assignment(
            run=self._run,
            attempt=self._instance,
            instance=member.instance,
            cut=member.cut,
            committed=member.committed,
            digest=member.digest,
            trained=member.trained,
            held=held,
            first=first,
            fresh=fresh,
        )
        self._retain(routes.ASSIGNMENT, assignment, member.device, repeat_after=repeat_after)

    def ack(self, device: str, opened: RoundOpen, step: int, room: int, *, resend: bool) -> None:
        """All batches below `step` are trained; the device may have `room` batches under way."""
        ack = Ack(
            run=self._run,
            round=opened.round,
            attempt=opened.attempt,
            phase=opened.batches,
            step=step,
            room=room,
            resend=resend,
        )
        self._port.publish(routes.ACK.topic(self._topics, device), ack.encode())

    def deliver(self, device: str, route: Route, payloads: Iterable[bytes]) -> None:
        """Send a device what it requested, in parts."""
        for payload in payloads:
            publish_in_parts(self._port, route.topic(self._topics, device), payload, most=DELIVERY_PART)

    def error(
        self, device: str, code: ExitCode, message: str, *, instance: int = 0, fatal: bool = False
    ) -> None:
        report = ErrorReport(code=int(code), message=message[:1000], fatal=fatal, instance=instance)
        self._port.publish(routes.ERROR.topic(self._topics, device), report.encode())

    def heartbeat(
        self,
        doing: str,
        waiting_for: tuple[str, ...],
        rejected: int,
        quarantined: tuple[str, ...] = (),
        dismissed: tuple[str, ...] = (),
        *,
        now: bool = False,
    ) -> bool:
        """Publish the status when it is due, or `now`; False: it was not."""
        if not now and self._clock() < self._heartbeat_due:
            return False
        status = ServerStatus(
            state="online",
            instance=self._instance,
            run=self._run,
            doing=doing,
            waiting_for=waiting_for[:100],
            rejected=rejected,
            quarantined=quarantined[:100],
            dismissed=dismissed[:100],
            time=time.time(),
        )
        self._port.publish(self._topics.server_status, status.encode(), retain=True)
        self._heartbeat_due = self._clock() + HEARTBEAT
        return True

    def reply(self, request: int, code: ExitCode, message: str) -> None:
        """Publish the result of a dismissal."""
        reply = DismissalReply(request=request, code=int(code), message=message[:1000])
        self._port.publish(routes.DISMISSED.topic(self._topics), reply.encode())

    def forget(self, device: str) -> None:
        """Do not publish this device's retained messages again."""
        for topic in retained_topics(self._topics, device):
            self._retained.pop(topic, None)
            self._published_at.pop(topic, None)

    def republish(self) -> None:
        """Publish all retained messages again: the broker may have lost them."""
        for topic, payload in self._retained.items():
            self._publish_retained(topic, payload)

    def _retain(
        self, route: Route, message: JsonMessage, device: str = "", *, repeat_after: float = 0.0
    ) -> None:
        """Publish a retained message, unless the same was published in the last `repeat_after` seconds."""
        self._retain_payload(route.topic(self._topics, device), message.encode(), repeat_after=repeat_after)

    def _retain_payload(self, topic: str, payload: bytes, *, repeat_after: float) -> None:
        if self._retained.get(topic) == payload and self._clock() - self._published_at[topic] < repeat_after:
            return
        self._retained[topic] = payload
        self._publish_retained(topic, payload)

    def _publish_retained(self, topic: str, payload: bytes) -> None:
        self._published_at[topic] = self._clock()
        self._port.publish(topic, payload, retain=True)
