"""Sends devices their models: offers them, and answers each with the bytes that it lacks."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path

from splitee.errors import MalformedMessage
from splitee.inference.bundle import pack_bundle
from splitee.inference.manifest import ClientManifest, read_manifest
from splitee.mqtt.events import Message
from splitee.mqtt.link import Link
from splitee.protocol.inference import ModelOffer, ModelPart, ModelReport, ModelWant
from splitee.protocol.topics import Topics

PART = 256 << 10  # bytes; a part that is lost is asked for again

WORDS: dict[str, Callable[[bytes], ModelWant | ModelReport]] = {  # what a device says, by its topic's leaf
    "model-want": ModelWant.decode,
    "model": ModelReport.decode,
}

log = logging.getLogger(__name__)


class Offers:
    """Models on offer, one a device."""

    def __init__(self, link: Link, topics: Topics, models: list[Path]) -> None:
        """`models`: exported model directories. Raises ModelError: one is missing or damaged."""
        self._link = link
        self._topics = topics
        self._bundles: dict[str, bytes] = {}
        self._offers: dict[str, ModelOffer] = {}
        self.reports: dict[str, ModelReport] = {}
        for path in models:
            device, bundle = read_manifest(path, ClientManifest).device, pack_bundle(path)
            self._bundles[device] = bundle
            self._offers[device] = ModelOffer(release=hashlib.sha256(bundle).hexdigest(), size=len(bundle))
        link.subscribe(topics.all_devices("model-want"), topics.all_devices("model"))

    def offer(self) -> None:
        """Publishes the offers, retained: a device that is off finds its own when it comes."""
        for device, offer in self._offers.items():
            self._link.publish(self._topics.device(device, "inbox/model"), offer.encode(), retain=True)

    @property
    def missing(self) -> list[str]:
        """Devices that have not said what became of their model."""
        return sorted(self._offers.keys() - self.reports.keys())

    def handle(self, message: Message) -> None:
        """A device's wish, or its report. Raises MalformedMessage."""
        found = self._topics.parse_device(message.topic)
        if found is None or found[1] not in WORDS:
            return
        device, word = found[0], WORDS[found[1]](message.payload)
        if device not in self._offers:
            return
        if isinstance(word, ModelWant):
            self._send(device, word)
        elif word.release == self._offers[device].release:
            self.reports[device] = word
            log.info("%s: model %s %s %s", device, word.release[:12], word.state, word.reason)

    def _send(self, device: str, want: ModelWant) -> None:
        bundle = self._bundles[device]
        if want.release != self._offers[device].release or want.offset >= len(bundle):
            raise MalformedMessage(f"ModelWant: {device} asks for what is not on offer")
        data = bundle[want.offset : want.offset + min(PART, self._link.max_packet - 256)]
        part = ModelPart(release=want.release, offset=want.offset, data=data)
        self._link.publish(self._topics.device(device, "inbox/model-part"), part.encode())
