# SPDX-License-Identifier: Apache-2.0
"""Offloads images to the fleet's server: request and response over MQTT, within a time-out."""

from __future__ import annotations

import logging
import math
import secrets
import threading
import time

from splitee.errors import BrokerRefused, BrokerUnreachable, ConfigError, Diverged, MalformedMessage
from splitee.inference.manifest import ClientManifest
from splitee.inference.uncertainty import Array
from splitee.mqtt.events import Disconnected, Event, Message
from splitee.mqtt.link import Link
from splitee.mqtt.meter import Meter
from splitee.mqtt.options import LinkOptions
from splitee.mqtt.rate_limiter import RateLimiter
from splitee.protocol import routes
from splitee.protocol.codecs import decode_tensor, encode_tensor
from splitee.protocol.fleet import ServerStatus
from splitee.protocol.gate import Gate, Received
from splitee.protocol.inference import InferReply, InferRequest
from splitee.protocol.parts import message_numbers, split
from splitee.protocol.topics import Topics

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds without requests after a server that did not reply in time
MARGIN = 0.02  # seconds set aside for waking up: the exit's prediction is due at the time-out, not after it

log = logging.getLogger(__name__)


class Offload:
    """One device's access to the trunk. Everything but the link's own work runs on the caller's thread."""

    def __init__(
        self,
        options: LinkOptions,
        manifest: ClientManifest,
        *,
        device: str | None = None,
        timeout: float = 2.0,
        role: str = "infer",
        meter: Meter | None = None,
    ) -> None:
        """`timeout`: seconds in which an image must have a prediction. `device`: default the manifest's.

        `role`: the end of the client id; of two connections with the same id the broker keeps the later one.

        `meter`: counts requests and responses.
        """
        topics, device = Topics(options.fleet), device or manifest.device
        self._manifest = manifest
        self._timeout = timeout
        self._gate = Gate(topics, (routes.INFER_REPLY, routes.SERVER_STATUS), device=device)
        self._requests = routes.INFER.topic(topics, device)
        self._responses = routes.INFER_REPLY.topic(topics, device)
        self._link = Link(options.address, f"splitee-{options.fleet}-{device}-{role}", tls=options.tls)
        self._link.meter = meter
        self._link.subscribe(*self._gate.filters)
        self._status: ServerStatus | None = None
        self._pause = FIRST_PAUSE
        self._log_no_prediction = RateLimiter()
        self._log_unsendable = RateLimiter()
        self._paused_until = 0.0
        self.sent = 0  # bytes of requests
        self.offloaded = 0  # images

    def open(self) -> None:
        """Connect; without a broker, keep trying in the background while the exit predicts.

        Raises BrokerRefused: the broker, or TLS, refused the connection.
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
        while (event := self._link.receive(0)) is not None:
            self._read_reply(event, None)
        if not self._is_available():
            return None
        correlation = secrets.token_bytes(16)
        if not self._request(features, correlation, deadline):
            return None
        while (left := deadline - time.monotonic()) > 0:
            event = self._link.receive(left)
            if event is None:
                continue
            reply = self._read_reply(event, correlation)
            if isinstance(event, Disconnected) or not self._is_available():
                return None
            if reply is not None:
                return self._logits_of(reply, len(features))
        self._paused_until = time.monotonic() + self._pause
        log.warning("no response within %.1f s; no requests for the next %.0f s", self._timeout, self._pause)
        self._pause = min(2 * self._pause, LONGEST_PAUSE)
        return None

    def _is_available(self) -> bool:
        offline = self._status is not None and self._status.state == "offline"
        return self._link.connected and not offline and time.monotonic() >= self._paused_until

    def _request(self, features: Array, correlation: bytes, deadline: float) -> bool:
        """Returns False if the broker does not accept the request in time; it was not sent as a whole.

        Nor is it if the model gives values for these images that no codec carries.
        """
        manifest = self._manifest
        try:
            encoded = encode_tensor(manifest.codec, features)
        except (ConfigError, Diverged) as error:
            if self._log_unsendable.due():
                log.warning("features are not offloaded: %s", error)
            return False
        payload = InferRequest(run=manifest.run, cut=manifest.cut, features=encoded).encode()
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
        self.offloaded += len(features)
        return True

    def _read_reply(self, event: Event, correlation: bytes | None) -> Received | None:
        """The reply to the request of `correlation`, if `event` completes it. Records server statuses."""
        received = self._gate.read(event) if isinstance(event, Message) else None
        if received is None:
            return None
        if isinstance(received.message, ServerStatus):
            self._on_server_status(received.message)
            return None
        is_awaited = correlation is not None and received.envelope.correlation == correlation
        return received if is_awaited else None

    def _on_server_status(self, status: ServerStatus) -> None:
        """Records a status. A restarted server may reply although the one before did not."""
        if self._status is None or status.instance != self._status.instance:
            self._paused_until = 0.0
        self._status = status

    def _logits_of(self, received: Received, samples: int) -> Array | None:
        """The logits of a reply; None: it has none, or not those of `samples` samples."""
        self._pause = FIRST_PAUSE
        reply: InferReply = received.message
        if reply.error or reply.logits is None:
            if self._log_no_prediction.due():
                log.warning("the server gives no prediction: %s", reply.error or "no logits")
            return None
        try:
            logits = decode_tensor(reply.logits, (len(self._manifest.class_names),))
            if len(logits) != samples:
                raise MalformedMessage(f"InferReply: {len(logits)} samples for {samples}")
        except MalformedMessage as error:
            self._gate.reject(received.route, received.device, received.envelope, error)
            return None
        return logits
