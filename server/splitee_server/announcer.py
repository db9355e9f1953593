"""The server's side of the topics: what is retained, what goes to a device, and who serves the fleet."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from splitee.errors import ExitCode, IdInUse, MalformedMessage
from splitee.mqtt.events import Message
from splitee.mqtt.link import Link
from splitee.protocol.fleet import ErrorReport, Metrics, ServerClaim, ServerStatus
from splitee.protocol.parts import message_numbers, split
from splitee.protocol.rounds import Ack, Assignment, Commit, RoundOpen
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.topics import Topics

if TYPE_CHECKING:  # members.py needs torch, and `splitee serve` does without
    from splitee_server.members.members import Member

log = logging.getLogger(__name__)

HEARTBEAT = 5.0  # seconds between two server/status
CLAIM = 1.0  # seconds a running server has to answer a claim
SILENT = 2.5 * HEARTBEAT  # seconds without a word after which a server that was online counts as gone


def offline(topics: Topics, instance: int) -> tuple[str, bytes]:
    """The last will and the farewell."""
    return topics.server_status, ServerStatus(state="offline", instance=instance).encode()


def claim_fleet(link: Link, topics: Topics, instance: int) -> None:
    """Make sure that no other server serves this fleet.

    Raises:
        IdInUse: one does.
    """
    link.subscribe(topics.server_status, topics.server_claim)
    link.publish(topics.server_claim, ServerClaim(instance=instance).encode())
    until = time.monotonic() + CLAIM
    while (left := until - time.monotonic()) > 0:
        event = link.receive(left)
        if not isinstance(event, Message):
            continue
        try:
            if event.topic == topics.server_claim:
                taken = ServerClaim.decode(event.payload).instance < instance
            else:
                other = ServerStatus.decode(event.payload)
                online = other.state == "online" and other.instance != instance
                taken = online and not event.retained
                if online and event.retained:
                    log.info("another server was online; waiting %.0f s for a word of it", SILENT)
                    until = time.monotonic() + SILENT
                elif not online and other.instance != instance:
                    until = min(until, time.monotonic() + CLAIM)
        except MalformedMessage as error:
            log.warning("%s: ignored: %s", event.topic, error)
            continue
        if taken:
            raise IdInUse(
                f"another server serves fleet {topics.fleet!r} at this broker: "
                "stop it, or take another --fleet"
            )


class Announcer:
    """Publishes; remembers what is retained, to publish it again when a broker has lost it."""

    def __init__(self, link: Link, topics: Topics, instance: int, run: str) -> None:
        """`instance`: of the server; it is also the attempt at which its rounds are opened."""
        self._link = link
        self._topics = topics
        self._instance = instance
        self._run = run
        self._retained: dict[str, bytes] = {}
        self._plans: dict[str, bytes] = {}  # by topic
        self._beat_due = 0.0

    def run(self, spec: RunSpec) -> None:
        self._retain(self._topics.run, spec.encode())

    def round(self, opened: RoundOpen) -> None:
        self._retain(self._topics.round, opened.encode())

    def commit(self, number: int, digests: dict[str, str], weights_sha256: str) -> None:
        """Round `number` is final; `digests` of the client networks that count in it."""
        commit = Commit(
            run=self._run,
            round=number,
            attempt=self._instance,
            digests=digests,
            weights_sha256=weights_sha256,
        )
        self._retain(self._topics.commit, commit.encode())

    def metrics(self, metrics: Metrics) -> None:
        self._retain(self._topics.metrics, metrics.encode())

    def plan(self, member: Member, *, held: bool) -> None:
        """Where a device stands; `held`: the server has its client network."""
        plan = Assignment(
            run=self._run,
            attempt=self._instance,
            instance=member.instance,
            cut=member.cut,
            committed=member.committed,
            digest=member.digest,
            trained=member.trained,
            held=held,
        )
        topic = self._topics.device(member.device, "inbox/plan")
        self._plans[topic] = plan.encode()
        self._link.publish(topic, self._plans[topic], retain=True)

    def ack(self, device: str, opened: RoundOpen, step: int, room: int, *, resend: bool) -> None:
        """Everything below `step` is trained, and `room` batches may be under way."""
        ack = Ack(
            run=self._run,
            round=opened.round,
            attempt=opened.attempt,
            phase="train" if opened.phase == "train" else "evaluate",
            step=step,
            room=room,
            resend=resend,
        )
        self._link.publish(self._topics.device(device, "inbox/ack"), ack.encode())

    def deliver(self, device: str, leaf: str, payloads: Iterable[bytes]) -> None:
        """What a device has asked for, in parts where the broker needs them."""
        for payload in payloads:
            for part in split(payload, self._link.max_packet, next(message_numbers)):
                self._link.publish(self._topics.device(device, leaf), part)

    def error(
        self, device: str, code: ExitCode, message: str, *, instance: int = 0, fatal: bool = False
    ) -> None:
        report = ErrorReport(code=int(code), message=message[:1000], fatal=fatal, instance=instance)
        self._link.publish(self._topics.device(device, "inbox/error"), report.encode())

    def beat(self, doing: str, waiting_for: tuple[str, ...], rejected: int, *, now: bool = False) -> None:
        """Publish the status when it is due, or `now`."""
        if not now and time.monotonic() < self._beat_due:
            return
        status = ServerStatus(
            state="online",
            instance=self._instance,
            run=self._run,
            doing=doing,
            waiting_for=waiting_for[:100],
            rejected=rejected,
            time=time.time(),
        )
        self._link.publish(self._topics.server_status, status.encode(), retain=True)
        self._beat_due = time.monotonic() + HEARTBEAT

    def again(self) -> None:
        """The broker may have lost what was retained."""
        for topic, payload in self._retained.items():
            self._link.publish(topic, payload, retain=True)
        for topic, payload in self._plans.items():
            self._link.publish(topic, payload, retain=True)

    def _retain(self, topic: str, payload: bytes) -> None:
        self._retained[topic] = payload
        self._link.publish(topic, payload, retain=True)
