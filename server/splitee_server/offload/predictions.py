"""Answers devices that are not sure: requests that are there together share a forward pass of the trunk."""

from __future__ import annotations

import logging
from collections import defaultdict
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from splitee.errors import MalformedMessage
from splitee.inference.trunks import Entry
from splitee.inference.uncertainty import Array
from splitee.mqtt.events import Message
from splitee.mqtt.link import Link
from splitee.mqtt.rate_limiter import RateLimiter
from splitee.protocol.codecs import decode_tensor, encode_tensor
from splitee.protocol.inference import InferAnswer, InferRequest
from splitee.protocol.parts import Assembler, message_numbers, split
from splitee.protocol.topics import Topics

MAX_SAMPLES = 64  # of a request, and of a forward pass
MAX_REQUEST = 64 << 20  # bytes
MAX_WAITING = 256  # requests; more are answered before the next is taken

log = logging.getLogger(__name__)


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

    def __init__(self, link: Link, topics: Topics, trunks: Trunks) -> None:
        self._link = link
        self._topics = topics
        self._trunks = trunks
        self._parts = Assembler(MAX_REQUEST)
        self._waiting: dict[str, list[Request]] = defaultdict(list)  # by trunk
        self._log_refused = RateLimiter()
        self.requests = 0  # answered
        self.passes = 0  # forward passes that it took
        self.rejected = 0

    @property
    def waiting(self) -> bool:
        """Whether `answer` has something to do."""
        return bool(self._waiting)

    def add(self, device: str, message: Message) -> None:
        """Takes a message on `devices/ID/infer`; one that cannot be answered is counted, and told why."""
        try:
            whole = self._parts.add(device, message.payload)
        except MalformedMessage as error:
            self._refuse(device, message, error)
            return
        if whole is None:
            return
        try:
            trunk, request = self._check(device, message, whole)
        except MalformedMessage as error:
            self._refuse(device, message, error)
        else:
            self._waiting[trunk].append(request)
            if sum(map(len, self._waiting.values())) >= MAX_WAITING:
                self.answer()

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

    def _check(self, device: str, message: Message, payload: bytes) -> tuple[str, Request]:
        reply_to, correlation = message.response_topic, message.correlation
        if reply_to is None or correlation is None or not self._is_own(device, reply_to):
            raise MalformedMessage("expected CorrelationData and a ResponseTopic in the device's own inbox")
        request = InferRequest.decode(payload)
        if request.run != self._trunks.run:
            raise MalformedMessage(
                f"features of run {request.run}; this server answers run {self._trunks.run}"
            )
        entry = self._trunks.entry(device)
        if entry is None:
            raise MalformedMessage(f"there is no trunk for {device} in run {self._trunks.run}")
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

    def _refuse(self, device: str, message: Message, error: MalformedMessage) -> None:
        self.rejected += 1
        if self._log_refused.due():
            log.warning("%s: infer: refused: %s (%d so far)", device, error, self.rejected)
        reply_to = message.response_topic
        if reply_to is not None and message.correlation is not None and self._is_own(device, reply_to):
            answer = InferAnswer(run=self._trunks.run, round=self._trunks.round, error=str(error)[:1000])
            self._reply(reply_to, message.correlation, answer)

    def _reply(self, topic: str, correlation: bytes, answer: InferAnswer) -> None:
        for part in split(answer.encode(), self._link.max_packet, next(message_numbers)):
            self._link.publish(topic, part, correlation=correlation)


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
