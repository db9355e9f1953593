# SPDX-License-Identifier: Apache-2.0
"""Predicts for devices whose exit is not sure: requests that wait together share a forward pass."""

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
from splitee.mqtt.port import Port
from splitee.protocol import routes
from splitee.protocol.codecs import LARGEST, decode_tensor, encode_tensor
from splitee.protocol.gate import Received, Rejection
from splitee.protocol.inference import InferAnswer
from splitee.protocol.parts import publish_in_parts
from splitee.protocol.topics import Topics

MAX_SAMPLES = 64  # of a request, and of a forward pass
MAX_CORRELATION = 64  # bytes
NO_ADDRESS = (
    f"expected CorrelationData of at most {MAX_CORRELATION} bytes, "
    "and the device's own inbox/answer as ResponseTopic"
)
MAX_WAITING = 256  # requests; more are answered before the next is taken

Guard = Callable[[str, Callable[[], None]], bool]
"""Does something for a device; False: that has raised an error, and the device's request is rejected."""


class Trunks(Protocol):
    """Committed trunks of one run."""

    @property
    def run(self) -> str: ...

    @property
    def round(self) -> int:
        """That the trunks are of."""

    def entry(self, device: str) -> Entry | None:
        """Where `device` enters; None: it has no trunk here."""

    def logits(self, trunk: str, features: Array) -> Array:
        """Features (B, *feature_shape) -> logits (B, classes)."""


@dataclass(frozen=True)
class Request:
    """One device's question, checked: features (B, ...) at its cut, and what the answer is known by."""

    device: str
    cut: int
    features: Array
    correlation: bytes


class Predictions:
    """Collects requests, then answers all of them; counts what it did."""

    def __init__(self, port: Port, topics: Topics, trunks: Trunks, guard: Guard) -> None:
        self._port = port
        self._topics = topics
        self._trunks = trunks
        self._guard = guard
        self._waiting: list[Request] = []
        self.requests = 0  # answered
        self.passes = 0  # forward passes that it took

    @property
    def waiting(self) -> bool:
        """Whether `answer` has something to do."""
        return bool(self._waiting)

    def add(self, received: Received) -> None:
        """Takes an InferRequest. Raises MalformedMessage: it cannot be answered."""
        device, request = received.device, received.message
        correlation = self._correlation(
            received.envelope.response_topic, received.envelope.correlation, device
        )
        if correlation is None:
            raise MalformedMessage(NO_ADDRESS)
        if (
            request.run != self._trunks.run
        ):  # the device's model is an earlier run's, until it gets its new one
            self._say_why(
                device,
                correlation,
                f"features of run {request.run}; this server predicts for run {self._trunks.run}",
            )
            return
        entry = self._entry(device, request.cut)
        if request.features.shape[0] > MAX_SAMPLES:
            raise MalformedMessage(f"{request.features.shape[0]} samples; at most {MAX_SAMPLES} are answered")
        features = decode_tensor(request.features, entry.feature_shape)
        self._waiting.append(Request(device, request.cut, features, correlation))
        if len(self._waiting) >= MAX_WAITING:
            self.answer()

    def refuse(self, rejection: Rejection) -> None:
        """Tells a device why its request is not answered."""
        if rejection.envelope is None:
            return
        response_topic, correlation = rejection.envelope.response_topic, rejection.envelope.correlation
        correlation = self._correlation(response_topic, correlation, rejection.device)
        if correlation is not None:
            self._say_why(rejection.device, correlation, str(rejection.error))

    def _say_why(self, device: str, correlation: bytes, error: str) -> None:
        """There are no logits for a device."""
        answer = InferAnswer(run=self._trunks.run, round=self._trunks.round, error=error[:1000])
        self._reply(device, correlation, answer)

    def answer(self) -> None:
        """Answers what is waiting, by the trunks that are committed now."""
        waiting, self._waiting = self._waiting, []
        by_trunk: dict[str, list[Request]] = defaultdict(list)
        for request in waiting:
            self._guard(request.device, partial(self._sort_in, request, by_trunk))
        for trunk, requests in by_trunk.items():
            for together in _batches(requests):
                self._answer(trunk, together)

    def _answer(self, trunk: str, requests: list[Request]) -> None:
        """In one forward pass; where that is not to be had, each request by itself, to its own harm only."""
        if len(requests) == 1:
            self._guard(requests[0].device, lambda: self._predict(trunk, requests))
            return
        try:
            self._predict(trunk, requests)
        except Exception:
            for request in requests:
                self._answer(trunk, [request])

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
            answer = InferAnswer(
                run=self._trunks.run,
                round=self._trunks.round,
                logits=encode_tensor("fp32", logits[start:end]),
                together=len(samples),
            )
            self._reply(request.device, request.correlation, answer)
            self.requests += 1
            start = end

    def _sort_in(self, request: Request, by_trunk: dict[str, list[Request]]) -> None:
        """Raises MalformedMessage: a commit has cut the device elsewhere since."""
        by_trunk[self._entry(request.device, request.cut).trunk].append(request)

    def _entry(self, device: str, cut: int) -> Entry:
        """Raises MalformedMessage: there is none for a device with this cut."""
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
        """What a response is known by; None: it must not be sent where the request wants it.

        Elsewhere than to the inbox's own topic, the server would write where the device itself may not.
        """
        is_own = response_topic == routes.ANSWER.topic(self._topics, device)
        return correlation if is_own and correlation and len(correlation) <= MAX_CORRELATION else None

    def _reply(self, device: str, correlation: bytes, answer: InferAnswer) -> None:
        topic = routes.ANSWER.topic(self._topics, device)
        publish_in_parts(self._port, topic, answer.encode(), correlation=correlation)


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
