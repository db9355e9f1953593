"""Predicts for devices whose exit is not sure: requests that wait together share a forward pass."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from splitee.errors import MalformedMessage
from splitee.inference.trunks import Entry
from splitee.inference.uncertainty import Array
from splitee.mqtt.events import Message
from splitee.mqtt.port import Port
from splitee.protocol.codecs import decode_tensor, encode_tensor
from splitee.protocol.gate import Received, Rejection
from splitee.protocol.inference import InferAnswer
from splitee.protocol.parts import publish_in_parts
from splitee.protocol.topics import Topics

MAX_SAMPLES = 64  # of a request, and of a forward pass
NO_ADDRESS = "expected CorrelationData and a ResponseTopic in the device's own inbox"
MAX_WAITING = 256  # requests; more are answered before the next is taken


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
    """One device's question, checked: features (B, ...) at its cut, and where the answer goes."""

    features: Array
    reply_to: str
    correlation: bytes


class Predictions:
    """Collects requests, then answers all of them; counts what it did."""

    def __init__(self, port: Port, topics: Topics, trunks: Trunks) -> None:
        self._port = port
        self._topics = topics
        self._trunks = trunks
        self._waiting: dict[str, list[Request]] = defaultdict(list)  # by trunk
        self.requests = 0  # answered
        self.passes = 0  # forward passes that it took

    @property
    def waiting(self) -> bool:
        """Whether `answer` has something to do."""
        return bool(self._waiting)

    def add(self, received: Received) -> None:
        """Takes an InferRequest. Raises MalformedMessage: it cannot be answered."""
        trunk, request = self._check(received)
        self._waiting[trunk].append(request)
        if sum(map(len, self._waiting.values())) >= MAX_WAITING:
            self.answer()

    def refuse(self, rejection: Rejection) -> None:
        """Tells a device why its request is not answered."""
        envelope = rejection.envelope
        reply_to, correlation = envelope.response_topic, envelope.correlation
        if reply_to is not None and correlation is not None and self._is_own(rejection.device, reply_to):
            answer = InferAnswer(
                run=self._trunks.run, round=self._trunks.round, error=str(rejection.error)[:1000]
            )
            self._reply(reply_to, correlation, answer)

    def answer(self) -> None:
        """Answers what is waiting."""
        while self._waiting:
            trunk, requests = self._waiting.popitem()
            for together in _batches(requests):
                self._answer(trunk, together)

    def _answer(self, trunk: str, requests: list[Request]) -> None:
        samples = np.concatenate([request.features for request in requests])
        logits = self._trunks.logits(trunk, samples)
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
            self._reply(request.reply_to, request.correlation, answer)
            self.requests += 1
            start = end

    def _check(self, received: Received) -> tuple[str, Request]:
        device, request = received.device, received.message
        reply_to, correlation = _reply_address(received.envelope)
        if not self._is_own(device, reply_to):
            raise MalformedMessage(NO_ADDRESS)
        if request.run != self._trunks.run:
            raise MalformedMessage(
                f"features of run {request.run}; this server answers run {self._trunks.run}", "foreign"
            )
        entry = self._trunks.entry(device)
        if entry is None:
            raise MalformedMessage(f"there is no trunk for {device} in run {self._trunks.run}", "unknown")
        if request.cut != entry.cut:
            raise MalformedMessage(f"features of cut {request.cut}; {device} has cut {entry.cut} in this run")
        if request.features.shape[0] > MAX_SAMPLES:
            raise MalformedMessage(f"{request.features.shape[0]} samples; at most {MAX_SAMPLES} are answered")
        return entry.trunk, Request(
            decode_tensor(request.features, entry.feature_shape), reply_to, correlation
        )

    def _is_own(self, device: str, topic: str) -> bool:
        """Otherwise a device could have the server write where the device itself may not."""
        found = self._topics.parse_device(topic)
        return found is not None and found[0] == device and found[1].startswith("inbox/")

    def _reply(self, topic: str, correlation: bytes, answer: InferAnswer) -> None:
        publish_in_parts(self._port, topic, answer.encode(), correlation=correlation)


def _reply_address(envelope: Message) -> tuple[str, bytes]:
    if envelope.response_topic is None or envelope.correlation is None:
        raise MalformedMessage(NO_ADDRESS)
    return envelope.response_topic, envelope.correlation


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
