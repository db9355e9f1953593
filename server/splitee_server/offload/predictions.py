# SPDX-License-Identifier: Apache-2.0
"""Predicts for images that devices offload; requests that wait together share a forward pass."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np

from splitee.errors import MalformedMessage
from splitee.inference.trunks import Entry
from splitee.inference.uncertainty import Array
from splitee.mqtt.events import Message
from splitee.mqtt.port import Port
from splitee.protocol import routes
from splitee.protocol.codecs import LARGEST, decode_tensor, encode_tensor
from splitee.protocol.gate import Received, Rejection
from splitee.protocol.inference import InferReply
from splitee.protocol.parts import publish_in_parts
from splitee.protocol.topics import Topics

MAX_SAMPLES = 64  # of a request, and of a forward pass
MAX_CORRELATION = 64  # bytes
NO_ADDRESS = (
    f"expected CorrelationData of at most {MAX_CORRELATION} bytes, "
    "and the device's own inbox/answer as ResponseTopic"
)
MAX_WAITING = 256  # requests; then all get their replies before the next is read

Guard = Callable[[str, Callable[[], None], Message], bool]
"""Runs an action for a device's message; False: it raised an error, and the message is rejected."""


class Trunks(Protocol):
    """Committed trunks of one run."""

    @property
    def run(self) -> str: ...

    @property
    def round(self) -> int:
        """The committed round of the trunks."""

    def entry(self, device: str) -> Entry | None:
        """The trunk and cut of `device`; None: it has no trunk here."""

    def logits(self, trunk: str, features: Array) -> Array:
        """Features (B, *feature_shape) -> logits (B, classes)."""


@dataclass(frozen=True)
class Request:
    """One device's request, checked: features (B, ...) at its cut, and its correlation data.

    `envelope`: the message, whose rejection still gets a reply.
    """

    device: str
    cut: int
    features: Array
    correlation: bytes
    envelope: Message


class Predictions:
    """Collects requests, then replies to all of them; counts requests and forward passes."""

    def __init__(self, port: Port, topics: Topics, trunks: Trunks, guard: Guard) -> None:
        self._port = port
        self._topics = topics
        self._trunks = trunks
        self._guard = guard
        self._waiting: list[Request] = []
        self.requests = 0  # with a reply
        self.passes = 0  # forward passes that it took

    @property
    def waiting(self) -> bool:
        """Whether `reply_to_all` has something to do."""
        return bool(self._waiting)

    def add(self, received: Received) -> None:
        """Queue an InferRequest. Raises MalformedMessage: there can be no prediction for it."""
        device, request = received.device, received.message
        correlation = self._correlation(
            received.envelope.response_topic, received.envelope.correlation, device
        )
        if correlation is None:
            raise MalformedMessage(NO_ADDRESS)
        if request.run != self._trunks.run:  # until it gets its new model, a device has an earlier run's
            self._send_reason(
                device,
                correlation,
                f"features of run {request.run}; this server predicts for run {self._trunks.run}",
            )
            return
        entry = self._entry(device, request.cut)
        if request.features.shape[0] > MAX_SAMPLES:
            raise MalformedMessage(f"{request.features.shape[0]} samples; at most {MAX_SAMPLES} get a reply")
        features = decode_tensor(request.features, entry.feature_shape)
        self._waiting.append(Request(device, request.cut, features, correlation, received.envelope))
        if len(self._waiting) >= MAX_WAITING:
            self.reply_to_all()

    def refuse(self, rejection: Rejection) -> None:
        """Tell a device why its request is refused."""
        if rejection.envelope is None:
            return
        response_topic, correlation = rejection.envelope.response_topic, rejection.envelope.correlation
        correlation = self._correlation(response_topic, correlation, rejection.device)
        if correlation is not None:
            self._send_reason(rejection.device, correlation, str(rejection.error))

    def _send_reason(self, device: str, correlation: bytes, error: str) -> None:
        """Reply with an error instead of logits."""
        reply = InferReply(run=self._trunks.run, round=self._trunks.round, error=error[:1000])
        self._reply(device, correlation, reply)

    def reply_to_all(self) -> None:
        """Reply to all waiting requests, with the trunks of the present commit."""
        waiting, self._waiting = self._waiting, []
        by_trunk: dict[str, list[Request]] = defaultdict(list)
        for request in waiting:
            self._guard(request.device, partial(self._group_by_trunk, request, by_trunk), request.envelope)
        for trunk, requests in by_trunk.items():
            for together in _batches(requests):
                self._reply_together(trunk, together)

    def _reply_together(self, trunk: str, requests: list[Request]) -> None:
        """In one forward pass; if that fails, each request by itself, so that a bad one harms no other."""
        if len(requests) == 1:
            self._guard(requests[0].device, lambda: self._predict(trunk, requests), requests[0].envelope)
            return
        try:
            self._predict(trunk, requests)
        except Exception:
            for request in requests:
                self._reply_together(trunk, [request])

    def _predict(self, trunk: str, requests: list[Request]) -> None:
        samples = np.concatenate([request.features for request in requests])
        logits = self._trunks.logits(trunk, samples)
        if not (np.abs(logits) <= LARGEST).all():
            raise MalformedMessage(
                "the trunk's prediction for these features is not finite, or out of bounds"
            )
        self.passes += 1
        start = 0
        for request in requests:
            end = start + len(request.features)
            reply = InferReply(
                run=self._trunks.run,
                round=self._trunks.round,
                logits=encode_tensor("fp32", logits[start:end]),
                together=len(samples),
            )
            self._reply(request.device, request.correlation, reply)
            self.requests += 1
            start = end

    def _group_by_trunk(self, request: Request, by_trunk: dict[str, list[Request]]) -> None:
        """Raises MalformedMessage: a commit has changed the device's cut since."""
        by_trunk[self._entry(request.device, request.cut).trunk].append(request)

    def _entry(self, device: str, cut: int) -> Entry:
        """Raises MalformedMessage: there is no trunk for this device with this cut."""
        entry = self._trunks.entry(device)
        if entry is None:
            raise MalformedMessage(f"there is no trunk for {device} in run {self._trunks.run}", "unknown")
        if cut != entry.cut:
            raise MalformedMessage(
                f"features of cut {cut}; {device} has cut {entry.cut} in this run", "foreign"
            )
        return entry

    def _correlation(
        self, response_topic: str | None, correlation: bytes | None, device: str
    ) -> bytes | None:
        """The reply's correlation data; None: the server must not reply where the request wants it.

        The only topic allowed is the device's inbox: a device could use any other to have the server
        publish where the device itself may not.
        """
        is_own = response_topic == routes.INFER_REPLY.topic(self._topics, device)
        return correlation if is_own and correlation and len(correlation) <= MAX_CORRELATION else None

    def _reply(self, device: str, correlation: bytes, reply: InferReply) -> None:
        topic = routes.INFER_REPLY.topic(self._topics, device)
        publish_in_parts(self._port, topic, reply.encode(), correlation=correlation)


def _batches(requests: list[Request]) -> list[list[Request]]:
    """In their order, each of at most MAX_SAMPLES samples."""
    batches: list[list[Request]] = [[]]
    room = MAX_SAMPLES
    for request in requests:
        if len(request.features) > room:
            batches.append([])
            room = MAX_SAMPLES
        batches[-1].append(request)
        room -= len(request.features)
    return batches
