# SPDX-License-Identifier: Apache-2.0
"""Offers devices their models, and answers each with the bytes that it lacks."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path

from splitee.errors import MalformedMessage
from splitee.inference.bundle import pack_bundle
from splitee.inference.manifest import ClientManifest, read_manifest
from splitee.inference.signatures import ReleaseSigner
from splitee.mqtt.port import Port
from splitee.protocol import routes
from splitee.protocol.accuracies import ReleasedThreshold
from splitee.protocol.gate import Received
from splitee.protocol.inference import ModelOffer, ModelReport, ReleasePart, ReleaseWant
from splitee.protocol.topics import Topics

PART = 256 << 10  # bytes; a part that is lost is asked for again

ROUTES = (routes.MODEL_WANT, routes.MODEL_REPORT)  # what devices say of their models

log = logging.getLogger(__name__)


class Offers:
    """Models on offer, one a device."""

    def __init__(
        self,
        port: Port,
        topics: Topics,
        models: list[Path],
        signer: ReleaseSigner | None = None,
        is_gone: Callable[[str], bool] = lambda _device: False,
    ) -> None:
        """`models`: exported model directories. `signer`: None, the offers are not signed.

        `is_gone`: whether a device is to be offered nothing.

        Raises ModelError: a model is missing or damaged.
        """
        self._port = port
        self._topics = topics
        self._is_gone = is_gone
        self._bundles: dict[str, bytes] = {}
        self._offers: dict[str, ModelOffer] = {}
        self.thresholds: dict[str, ReleasedThreshold] = {}  # when the models predict by themselves
        self.reports: dict[str, ModelReport] = {}
        for path in models:
            manifest, bundle = read_manifest(path, ClientManifest), pack_bundle(path)
            self.thresholds[manifest.device] = manifest.released
            release = hashlib.sha256(bundle).hexdigest()
            offer = ModelOffer(release=release, size=len(bundle), run=manifest.run)
            if signer is not None:
                offer = signer.sign(offer, topics.fleet, manifest.device)
            self._bundles[manifest.device], self._offers[manifest.device] = bundle, offer
        port.subscribe(*(route.topic(topics) for route in ROUTES))

    def offer(self, *devices: str) -> None:
        """Publishes the offers to these devices, or to all, retained: one that is off finds its own later."""
        for device in devices or self._offers:
            if device in self._offers and not self._is_gone(device):
                topic = routes.MODEL_OFFER.topic(self._topics, device)
                self._port.publish(topic, self._offers[device].encode(), retain=True)

    @property
    def missing(self) -> list[str]:
        """Devices that have not said what became of their model."""
        silent = self._offers.keys() - self.reports.keys()
        return sorted(device for device in silent if not self._is_gone(device))

    def handle(self, received: Received) -> None:
        """A device asks for bytes, or reports. Raises MalformedMessage."""
        device, message = received.device, received.message
        offer = self._offers.get(device)
        if offer is None:
            return
        if isinstance(message, ReleaseWant):
            self._send(device, message)
        elif isinstance(message, ModelReport) and message.release == offer.release:
            if message.state in ("downloading", "trying"):
                return
            self.reports[device] = message
            why = f": {message.reason}" if message.reason else ""
            log.info("%s: model %s %s%s", device, message.release[:12], message.state, why)

    def _send(self, device: str, want: ReleaseWant) -> None:
        bundle = self._bundles[device]
        if want.release != self._offers[device].release or want.offset >= len(bundle):
            raise MalformedMessage(f"ReleaseWant: {device} asks for what is not on offer")
        data = bundle[want.offset : want.offset + min(PART, self._port.max_packet - 256)]
        part = ReleasePart(release=want.release, offset=want.offset, data=data)
        self._port.publish(routes.MODEL_PART.topic(self._topics, device), part.encode())
