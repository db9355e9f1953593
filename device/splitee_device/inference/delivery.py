# SPDX-License-Identifier: Apache-2.0
"""Fetches what a server releases to a device, resumes interrupted fetches, and checks before installing."""

from __future__ import annotations

import hashlib
import logging
import shutil
import time
from pathlib import Path

from splitee.cli.words import size
from splitee.clock import Clock
from splitee.durable import unwritable
from splitee.errors import MalformedMessage, ModelError, StateError
from splitee.inference.signatures import ReleaseKey
from splitee.mqtt.events import Message
from splitee.mqtt.port import Port
from splitee.mqtt.rate_limiter import RateLimiter
from splitee.protocol.fields import ReleaseState
from splitee.protocol.gate import Gate, Received
from splitee.protocol.inference import (
    ModelOffer,
    ReleasePart,
    ReleaseReport,
    ReleaseWant,
    SoftwareOffer,
)
from splitee.protocol.routes import RELEASES
from splitee.protocol.topics import Topics
from splitee_device.inference.installer import Installer, Outcome

REQUEST_AGAIN = 5.0  # seconds without a part before the device requests it again
LOG_EVERY = 5.0  # seconds between log lines on offers that are not trusted; all are reported
REPORT_EVERY = 1.0  # seconds between reports on progress

Offer = ModelOffer | SoftwareOffer

log = logging.getLogger(__name__)


class Delivery:
    """The device's side of the delivery of one kind of release.

    Fetched bytes are on disk, so that a new process continues where the last one ended.
    """

    def __init__(
        self,
        port: Port,
        topics: Topics,
        device: str,
        installer: Installer,
        *,
        key: ReleaseKey | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        """`key`: of which releases must be signed; None: signatures are not checked. Software needs a key."""
        self._port = port
        self._fleet = topics.fleet
        self._key = key
        self._device = device
        self._installer = installer
        self._clock = clock
        routes = RELEASES[installer.kind]
        self._gate = Gate(topics, (routes.offer, routes.part), device=device, accepts_cleared=True)
        self._want_topic = routes.want.topic(topics, device)
        self._report_topic = routes.report.topic(topics, device)
        self._reported: ReleaseReport | None = None
        self._offer: Offer | None = None  # being fetched
        self._failed: tuple[Offer, str] | None = None  # the last that failed, and why
        self._last_offer: Offer | None = None  # the last that was received
        self._postponed: Offer | None = None  # until the trial under way has ended
        self._torn: set[str] = set()
        self._log_distrust = RateLimiter(LOG_EVERY)
        self._progress = RateLimiter(REPORT_EVERY, clock)
        self._fetched = 0
        self._due = 0.0
        port.subscribe(*self._gate.filters)

    @property
    def rejected(self) -> int:
        """Number of malformed messages, which changed nothing."""
        return self._gate.rejected.total()

    def handle(self, message: Message) -> None:
        """Handles a message of a delivery; ignores others."""
        received = self._gate.read(message)
        if received is not None:
            self._gate.apply(received, self._dispatch)

    def _dispatch(self, received: Received) -> None:
        message = received.message
        if message is None:
            self._withdraw()
        elif isinstance(message, ReleasePart):
            self._on_part(message)
        else:
            self._on_offer(message)

    def tick(self) -> None:
        """Requests again if nothing has come for a while, and reports outcomes of the installer."""
        if self._offer is not None and self._clock() >= self._due:
            self._request()
        self._report_pending_outcome()
        if self._postponed is not None and self._installer.trying is None:
            offer, self._postponed = self._postponed, None
            self._on_offer(offer)

    def resubscribe(self) -> None:
        """Messages were lost: subscribes again, so that the broker resends retained ones, such as offers."""
        self._port.subscribe(*self._gate.filters)

    def refetch(self, reason: str) -> None:
        """The model in service is lost: the last offer counts again."""
        if (offer := self._last_offer) is None:
            return
        self.report(offer.release, "failed", reason)
        if offer.action == "install" and self._offer is None:
            self._on_offer(offer)

    def report(self, release: str, state: ReleaseState, reason: str = "") -> None:
        """Reports to the fleet what became of a release, and which one is in service."""
        have, whole = (self._fetched, self._offer.size) if state == "downloading" and self._offer else (0, 0)
        report = ReleaseReport(release, state, reason[:1000], time.time(), have, whole)
        known = (
            self._last_offer if self._last_offer is not None and self._last_offer.release == release else None
        )
        self._reported = self._installer.report(report, known)
        self.republish()

    def _report_pending_outcome(self) -> None:
        """Reports the outcome of the trial for which this process was started, before anything else."""
        if (outcome := self._installer.outcome()) is not None:
            self._report_outcome(outcome)

    def _report_outcome(self, outcome: Outcome) -> None:
        self.report(outcome.release, outcome.state, outcome.reason)

    def republish(self) -> None:
        """Publishes the last report again, which the broker may have lost."""
        if self._reported is not None:
            self._port.publish(self._report_topic, self._reported.encode(), retain=True)

    def _on_offer(self, offer: Offer) -> None:
        if offer == self._offer:
            return
        self._report_pending_outcome()
        self._last_offer = offer
        if (trying := self._installer.trying) is not None:
            self._postponed = offer
            if offer.release == trying:
                self.report(offer.release, "trying")
        elif offer.action == "roll back":
            self._roll_back(offer)
        elif offer.release == self._installer.release:
            self._offer = None
            self.report(offer.release, "in service")
        elif self._failed is not None and offer == self._failed[0]:
            self.report(offer.release, "failed", self._failed[1])
        elif self._may_fetch(offer):
            self._fetch(offer)

    def _fetch(self, offer: Offer) -> None:
        for stale in self._installer.folder.glob("*.incoming"):
            if stale != self._file(offer.release):
                stale.unlink(missing_ok=True)
        path = self._file(offer.release)
        self._fetched = path.stat().st_size if path.exists() else 0
        if self._fetched > offer.size:
            path.unlink()
            self._fetched = 0
        free = shutil.disk_usage(self._installer.folder).free
        if free < offer.size - self._fetched:
            self._fail(offer, f"it takes {size(offer.size)}, and the disk has only {size(free)} left")
            return
        self._offer = offer
        here = f", {size(self._fetched)} are here" if self._fetched else ""
        log.info("%s %s is offered: %s%s", self._kind, offer.release[:12], size(offer.size), here)
        if self._fetched == offer.size:
            self._finish(offer)
        else:
            self._request()
            self._report_progress(offer)

    def _may_fetch(self, offer: Offer) -> bool:
        """Whether the offer is properly signed and can be accepted; if not, this is reported."""
        try:
            self._verify(offer)
            if self._key is not None and self._installer.has_taken(offer):
                self._report_rolled_back(offer)
                return False
            self._installer.check(offer)
        except ModelError as error:
            if self._log_distrust.due():
                log.warning("%s %s is not fetched: %s", self._kind, offer.release[:12], error)
            self._failed = (offer, str(error))
            self.report(offer.release, "failed", str(error))
            return False
        return True

    def _report_rolled_back(self, offer: Offer) -> None:
        """Reports it with the reason, if that has just been reported."""
        last = self._reported
        if last is not None and (last.release, last.state) == (offer.release, "rolled back"):
            self.republish()
        else:
            self.report(offer.release, "rolled back", "this device has had it in service, and went back")

    def _verify(self, offer: Offer) -> None:
        """Raises ModelError: the offer is not properly signed, or older than one that was accepted."""
        if self._key is None:
            if self._installer.kind == "software":
                raise ModelError("software is only taken signed: name the fleet's key by --release-key")
            return
        self._key.check(offer, self._fleet, self._device)
        if offer.signed_at < self._installer.newest_signature:
            raise ModelError(
                "the release was signed before the newest that this device took: sign it again "
                "(`splitee release --signing-key FILE`)"
            )

    def _on_part(self, part: ReleasePart) -> None:
        offer = self._offer
        if offer is None or part.release != offer.release or part.offset != self._fetched:
            return  # of another release, or one that came twice
        if self._fetched + len(part.data) > offer.size:
            raise MalformedMessage(f"ReleasePart: more than the {offer.size} bytes of the release")
        path = self._file(offer.release)
        try:
            with path.open("ab") as file:
                file.write(part.data)
        except OSError as error:
            path.unlink(missing_ok=True)
            self._fail(offer, str(unwritable(path, error)))
            return
        self._fetched += len(part.data)
        if self._fetched == offer.size:
            self._finish(offer)
        else:
            self._request()
            self._report_progress(offer)

    def _finish(self, offer: Offer) -> None:
        self._offer = None
        path = self._file(offer.release)
        try:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != offer.release:
                path.unlink()
                self._refetch(offer)
                return
            self.report(offer.release, "trying")
            outcome = self._installer.install(path, offer, verified=self._key is not None)
        except (ModelError, StateError) as error:
            path.unlink(missing_ok=True)
            self._fail(offer, str(error))
        except OSError as error:  # such as a full disk, on which no folder can be made
            path.unlink(missing_ok=True)
            self._fail(offer, str(unwritable(self._installer.folder, error)))
        else:
            path.unlink(missing_ok=True)
            self._report_outcome(outcome)

    def _fail(self, offer: Offer, reason: str) -> None:
        """What was in service stays in service."""
        log.warning("%s %s: %s", self._kind, offer.release[:12], reason)
        self._offer, self._failed = None, (offer, reason)
        self.report(offer.release, "failed", reason)

    def _refetch(self, offer: Offer) -> None:
        """Fetches a file again that a power cut has torn, but only once."""
        if offer.release in self._torn:
            raise ModelError("what was delivered is refused: its bytes are not those of the offer")
        log.warning("%s %s: the fetched file is damaged; fetching it again", self._kind, offer.release[:12])
        self._torn = {offer.release}
        self._fetch(offer)

    def _roll_back(self, offer: Offer) -> None:
        """Follows the server's request to take back a release."""
        if self._offer is not None and self._offer.release == offer.release:
            self._offer = None
            self._file(offer.release).unlink(missing_ok=True)
        if self._installer.release != offer.release:
            self.report(offer.release, "rolled back", "it was not in service any more")
            return
        try:
            self._verify(offer)
            outcome = self._installer.roll_back(offer, verified=self._key is not None)
        except (ModelError, StateError) as error:
            log.warning("%s %s is not rolled back: %s", self._kind, offer.release[:12], error)
            self.report(offer.release, "in service", f"not rolled back: {error}")
        else:
            self._report_outcome(outcome)

    def _withdraw(self) -> None:
        """The offer is withdrawn. The bytes fetched so far stay, in case it is offered again."""
        self._postponed = None
        if self._offer is None:
            return
        log.info("%s %s is no longer offered", self._kind, self._offer.release[:12])
        self._offer = None
        if (serves := self._installer.release) is not None:
            self.report(serves, "in service")

    def _request(self) -> None:
        assert self._offer is not None
        want = ReleaseWant(release=self._offer.release, offset=self._fetched)
        self._port.publish(self._want_topic, want.encode())
        self._due = self._clock() + REQUEST_AGAIN

    def _report_progress(self, offer: Offer) -> None:
        if self._progress.due():
            self.report(offer.release, "downloading")

    @property
    def _kind(self) -> str:
        return self._installer.kind

    def _file(self, release: str) -> Path:
        return self._installer.folder / f"{release}.incoming"
