"""Sends devices their models: offers them, and answers each with the bytes that it lacks."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from splitee.errors import MalformedMessage
from splitee.link import Link, Message
from splitee.manifest import ClientManifest, read_manifest
from splitee.model_messages import ModelOffer, ModelPart, ModelReport, ModelWant
from splitee.shelf import pack_bundle
from splitee.topics import Topics

PART = 256 << 10  # bytes; a part that is lost is asked for again

log = logging.getLogger(__name__)


class Releases:
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
        if found is None or found[0] not in self._offers:
            return
        device, leaf = found
        if leaf == "model-want":
            self._send(device, ModelWant.decode(message.payload))
        elif leaf == "model":
            report = ModelReport.decode(message.payload)
            if report.release == self._offers[device].release:
                self.reports[device] = report
                log.info("%s: model %s %s %s", device, report.release[:12], report.state, report.reason)

    def _send(self, device: str, want: ModelWant) -> None:
        bundle = self._bundles[device]
        if want.release != self._offers[device].release or want.offset >= len(bundle):
            raise MalformedMessage(f"ModelWant: {device} asks for what is not on offer")
        data = bundle[want.offset : want.offset + min(PART, self._link.max_packet - 256)]
        part = ModelPart(release=want.release, offset=want.offset, data=data)
        self._link.publish(self._topics.device(device, "inbox/model-part"), part.encode())
