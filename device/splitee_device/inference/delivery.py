# SPDX-License-Identifier: Apache-2.0
"""Fetches the model that a server offers: goes on where it left off, and checks it before it serves."""

from __future__ import annotations

import hashlib
import logging
import time
from pathlib import Path

from splitee.cli.words import size
from splitee.clock import Clock
from splitee.durable import unwritable
from splitee.errors import MalformedMessage, ModelError
from splitee.inference.signatures import ReleaseKey
from splitee.mqtt.events import Message
from splitee.mqtt.port import Port
from splitee.mqtt.rate_limiter import RateLimiter
from splitee.protocol import routes
from splitee.protocol.fields import ReleaseState
from splitee.protocol.gate import Gate, Received
from splitee.protocol.inference import ModelOffer, ModelPart, ModelReport, ModelWant
from splitee.protocol.topics import Topics
from splitee_device.inference.model_store import ModelStore

ASK_AGAIN = 5.0  # seconds without a part before the device asks again
LOG_EVERY = 5.0  # seconds between lines on offers that are not trusted; each is reported

log = logging.getLogger(__name__)


class Delivery:
    """One device's side. What has come is on disk, so that a new process goes on where the last one ended."""

    def __init__(
        self,
        port: Port,
        topics: Topics,
        device: str,
        shelf: ModelStore,
        *,
        key: ReleaseKey | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        """`key`: only what it has signed is fetched; None: signatures do not count."""
        self._port = port
        self._fleet = topics.fleet
        self._key = key
        self._device = device
        self._shelf = shelf
        self._clock = clock
        self._gate = Gate(topics, (routes.MODEL_OFFER, routes.MODEL_PART), device=device, takes_cleared=True)
        self._wants = routes.MODEL_WANT.topic(topics, device)
        self._reports = routes.MODEL_REPORT.topic(topics, device)
        self._reported: ModelReport | None = None
        self._offer: ModelOffer | None = None
        self._refused: set[str] = set()
        self._distrusted: ModelOffer | None = None
        self._torn: set[str] = set()
        self._log_distrust = RateLimiter(LOG_EVERY)
        self._have = 0
        self._due = 0.0
        port.subscribe(*self._gate.filters)

    @property
    def rejected(self) -> int:
        """Messages that were malformed, and changed nothing."""
        return self._gate.rejected.total()

    def handle(self, message: Message) -> None:
        """Takes a message of a delivery; others are passed over."""
        received = self._gate.read(message)
        if received is not None:
            self._gate.apply(received, self._take)

    def _take(self, received: Received) -> None:
        if isinstance(received.message, ModelOffer):
            self._on_offer(received.message)
        elif isinstance(received.message, ModelPart):
            self._on_part(received.message)

    def tick(self) -> None:
        """Asks again when nothing has come for a while."""
        if self._offer is not None and self._clock() >= self._due:
            self._ask()

    def report(self, release: str, state: ReleaseState, reason: str = "", run: str = "") -> None:
        """Tells the fleet what became of a release, and which one serves. `run`: that it comes from."""
        serves = self._shelf.served()
        if serves is not None and serves.release == release:
            run = serves.run
        self._reported = ModelReport(
            release=release,
            state=state,
            reason=reason[:1000],
            run=run[:1000],
            time=time.time(),
            serves=serves,
        )
        self.say_again()

    def say_again(self) -> None:
        """The broker may have lost the last report."""
        if self._reported is not None:
            self._port.publish(self._reports, self._reported.encode(), retain=True)

    def _on_offer(self, offer: ModelOffer) -> None:
        if offer.release == self._shelf.release:
            self.report(offer.release, "in service")
            return
        if offer.release in self._refused or offer in (self._offer, self._distrusted):
            return
        if not self._is_trusted(offer):
            return
        for stale in self._shelf.path.glob("*.incoming"):
            if stale != self._file(offer.release):
                stale.unlink(missing_ok=True)
        path = self._file(offer.release)
        self._have = path.stat().st_size if path.exists() else 0
        if self._have > offer.size:
            path.unlink()
            self._have = 0
        self._offer = offer
        here = f", {size(self._have)} are here" if self._have else ""
        log.info("model %s is offered: %s%s", offer.release[:12], size(offer.size), here)
        if self._have == offer.size:
            self._finish(offer)
        else:
            self._ask()

    def _is_trusted(self, offer: ModelOffer) -> bool:
        """Whether the offer is signed as it must be; what is not is reported, and none of it is fetched."""
        if self._key is None:
            return True
        try:
            self._key.check(offer, self._fleet, self._device)
            if offer.signed_at <= self._shelf.trust.read().signed_at:
                raise ModelError(
                    "the release was signed before the newest that this device took, or is that one again: "
                    "sign it anew (`splitee release --signing-key FILE`)"
                )
        except ModelError as error:
            self._distrusted = offer
            if self._log_distrust.due():
                log.warning("model %s is not fetched: %s", offer.release[:12], error)
            self.report(offer.release, "failed", str(error), offer.run)
            return False
        return True

    def _on_part(self, part: ModelPart) -> None:
        offer = self._offer
        if offer is None or part.release != offer.release or part.offset != self._have:
            return  # of another release, or one that came twice
        if self._have + len(part.data) > offer.size:
            raise MalformedMessage(f"ModelPart: more than the {offer.size} bytes of the release")
        try:
            with self._file(offer.release).open("ab") as file:
                file.write(part.data)
        except OSError as error:
            raise unwritable(self._file(offer.release), error) from None
        self._have += len(part.data)
        if self._have == offer.size:
            self._finish(offer)
        else:
            self._ask()

    def _finish(self, offer: ModelOffer) -> None:
        self._offer = None
        path = self._file(offer.release)
        bundle = path.read_bytes()
        path.unlink()
        try:
            if hashlib.sha256(bundle).hexdigest() != offer.release:
                self._again(offer)
                return
            self._shelf.install(bundle, self._device, signed=None if self._key is None else offer)
        except ModelError as error:
            log.warning("%s", error)
            self._refused.add(offer.release)
            self.report(offer.release, "failed", str(error), offer.run)
        else:
            self.report(offer.release, "in service")

    def _again(self, offer: ModelOffer) -> None:
        """What a power cut has torn is fetched anew, once."""
        if offer.release in self._torn:
            raise ModelError("the delivered model is refused: its bytes are not those of the offer")
        log.warning("model %s: what has come is damaged; fetching it anew", offer.release[:12])
        self._torn.add(offer.release)
        self._on_offer(offer)

    def _ask(self) -> None:
        assert self._offer is not None
        want = ModelWant(release=self._offer.release, offset=self._have)
        self._port.publish(self._wants, want.encode())
        self._due = self._clock() + ASK_AGAIN

    def _file(self, release: str) -> Path:
        return self._shelf.path / f"{release}.incoming"
