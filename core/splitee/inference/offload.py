"""Asks the fleet's server for the trunk's prediction: request and response over MQTT, within a time-out."""

from __future__ import annotations

import logging
import math
import secrets
import threading
import time

from splitee.errors import BrokerRefused, BrokerUnreachable, MalformedMessage
from splitee.inference.manifest import ClientManifest
from splitee.inference.uncertainty import Array
from splitee.mqtt.events import Disconnected, Message
from splitee.mqtt.link import Link
from splitee.mqtt.options import LinkOptions
from splitee.protocol.codecs import decode_tensor, encode_tensor
from splitee.protocol.fleet import ServerStatus
from splitee.protocol.inference import InferAnswer, InferRequest
from splitee.protocol.parts import Assembler, message_numbers, split
from splitee.protocol.topics import Topics

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds without asking, after a server that did not respond in time
MARGIN = 0.02  # seconds set aside for waking up: the exit's prediction is due at the time-out, not after it

log = logging.getLogger(__name__)


class Offload:
    """One device's way to the trunk. All but the link's own work runs on the caller's thread."""

    def __init__(
        self,
        options: LinkOptions,
        manifest: ClientManifest,
        *,
        device: str | None = None,
        timeout: float = 2.0,
    ) -> None:
        """`timeout`: seconds in which one image must have a prediction. `device`: default the manifest's."""
        topics, device = Topics(options.fleet), device or manifest.device
        self._manifest = manifest
        self._timeout = timeout
        self._requests = topics.device(device, "infer")
        self._responses = topics.device(device, "inbox/answer")
        self._server = topics.server_status
        self._link = Link(options.address, f"splitee-{options.fleet}-{device}-infer", tls=options.tls)
        self._link.subscribe(self._responses, self._server)
        self._parts = Assembler()
        self._status: ServerStatus | None = None
        self._pause = FIRST_PAUSE
        self._silent_until = 0.0
        self.sent = 0  # bytes of requests
        self.asked = 0

    def open(self) -> None:
        """Connects; without a broker it goes on trying in the background, and the exit predicts meanwhile.

        Raises BrokerRefused: the broker, or TLS, said no.
        """
        try:
            self._link.open(self._timeout)
        except BrokerUnreachable as error:
            log.warning("%s; predicting locally until there is one", error)
            threading.Thread(target=self._keep_trying, name="offload", daemon=True).start()

    def _keep_trying(self) -> None:
        try:
            self._link.open(None)
        except BrokerUnreachable:  # closed before there was a broker
            return
        except BrokerRefused as error:
            log.warning("%s; predicting locally", error)

    def close(self) -> None:
        self._link.close()

    def logits(self, features: Array, waited: float = 0.0) -> Array | None:
        """The trunk's logits (B, classes) for features (B, *feature_shape); None: no response in time.

        `waited`: seconds of the time-out that are over already.
        """
        deadline = time.monotonic() + self._timeout - waited - MARGIN
        while self._receive(0, None) is not None:
            pass
        if not self._worth_asking():
            return None
        correlation = secrets.token_bytes(16)
        if not self._ask(features, correlation, deadline):
            return None
        while (left := deadline - time.monotonic()) > 0:
            event = self._receive(left, correlation)
            if isinstance(event, Disconnected) or (event is not None and not self._worth_asking()):
                return None
            if isinstance(event, InferAnswer):
                return self._read(event, len(features))
        self._silent_until = time.monotonic() + self._pause
        log.warning("no response within %.1f s; not asking for the next %.0f s", self._timeout, self._pause)
        self._pause = min(2 * self._pause, LONGEST_PAUSE)
        return None

    def _worth_asking(self) -> bool:
        offline = self._status is not None and self._status.state == "offline"
        return self._link.connected and not offline and time.monotonic() >= self._silent_until

    def _ask(self, features: Array, correlation: bytes, deadline: float) -> bool:
        """False: the broker does not take the request in time, and it was not sent as a whole."""
        manifest = self._manifest
        payload = InferRequest(
            run=manifest.run, cut=manifest.cut, features=encode_tensor(manifest.codec, features)
        ).encode()
        for part in split(payload, self._link.max_packet, next(message_numbers)):
            # publish() would wait for as long as the broker is silent.
            left = deadline - time.monotonic()
            if left <= 0 or not self._link.flush(left):
                return False
            if not self._link.publish(
                self._requests,
                part,
                expiry=math.ceil(left),
                response_topic=self._responses,
                correlation=correlation,
            ):
                return False
        self.sent += len(payload)
        self.asked += 1
        return True

    def _receive(self, timeout: float, correlation: bytes | None) -> object | None:
        """The next event within `timeout` seconds; the InferAnswer itself where it has this `correlation`."""
        event = self._link.receive(timeout)
        if not isinstance(event, Message):
            return event
        try:
            if event.topic == self._server:
                self._heard(ServerStatus.decode(event.payload))
            elif event.correlation is not None and event.correlation == correlation:
                whole = self._parts.add("server", event.payload)
                return event if whole is None else InferAnswer.decode(whole)
        except MalformedMessage as error:
            log.warning("%s: ignored: %s", event.topic, error)
        return event

    def _heard(self, status: ServerStatus) -> None:
        """A server that has started anew may respond to what another one did not."""
        if self._status is None or status.instance != self._status.instance:
            self._silent_until = 0.0
        self._status = status

    def _read(self, response: InferAnswer, samples: int) -> Array | None:
        self._pause = FIRST_PAUSE
        if response.error or response.logits is None:
            log.warning("the server gives no prediction: %s", response.error or "no logits")
            return None
        try:
            logits = decode_tensor(response.logits, (len(self._manifest.class_names),))
        except MalformedMessage as error:
            log.warning("the server's response is ignored: %s", error)
            return None
        if len(logits) != samples:
            log.warning("the server's response is ignored: %d samples for %d", len(logits), samples)
            return None
        return logits
