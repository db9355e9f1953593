# SPDX-License-Identifier: Apache-2.0
"""A rank's subscriptions to the features of its own devices."""

from __future__ import annotations

from collections.abc import Collection

from splitee.mqtt.port import Port
from splitee.protocol import routes
from splitee.protocol.topics import Topics


class FeatureSubscriptions:
    """Subscribes to the features of new devices, and unsubscribes from those of others."""

    def __init__(self, port: Port, topics: Topics) -> None:
        self._port = port
        self._topics = topics
        self._devices: frozenset[str] = frozenset()

    def __contains__(self, device: str) -> bool:
        return device in self._devices

    def set_devices(self, devices: Collection[str]) -> frozenset[str]:
        """Listen to these devices only; returns those that it no longer listens to."""
        wanted = frozenset(devices)
        gone, new = self._devices - wanted, wanted - self._devices
        if gone:
            self._port.unsubscribe(*self._features(gone))
        if new:
            self._port.subscribe(*self._features(new))
        self._devices = wanted
        return gone

    def remove(self, devices: Collection[str]) -> frozenset[str]:
        """Stop listening to these devices; returns those that it had listened to."""
        return self.set_devices(self._devices.difference(devices))

    def _features(self, devices: Collection[str]) -> list[str]:
        return [routes.FEATURES.topic(self._topics, device) for device in sorted(devices)]
