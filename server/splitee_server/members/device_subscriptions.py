# SPDX-License-Identifier: Apache-2.0
"""Whose topics the server subscribes to: all devices', or, for a while after a flood, members' only."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable

from splitee.clock import Clock
from splitee.mqtt.port import Port
from splitee.protocol.routes import Route
from splitee.protocol.topics import Topics

MEMBERS_ONLY = 600.0  # seconds without new devices, after a flood

log = logging.getLogger(__name__)


class DeviceSubscriptions:
    """Subscribes to devices' topics, by one filter for all of them or by the members' names."""

    def __init__(
        self,
        port: Port,
        topics: Topics,
        routes: Collection[Route],
        members: Callable[[], Iterable[str]],
        clock: Clock,
    ) -> None:
        """`routes`: that the server reads. `members`: the devices to listen to after a flood."""
        self._port = port
        self._topics = topics
        self._routes = [route for route in routes if route.of_device]
        self._members = members
        self._clock = clock
        self._members_only_until: float | None = None  # by the clock; None: subscribed to all devices

    def shut_out(self, device: str) -> None:
        """Unsubscribe from the topics of a device that floods the server."""
        if self._members_only_until is None:
            log.warning(
                "%s floods this server: for %.0f s only other devices that have joined are heard",
                device,
                MEMBERS_ONLY,
            )
            self._members_only_until = self._clock() + MEMBERS_ONLY
            if topics := self._of(self._members()):  # MQTT knows no subscription to nothing
                self._port.subscribe(*topics)
            self._port.unsubscribe(*self._of("+"))
        self._port.unsubscribe(*self._of([device]))

    def tick(self) -> None:
        """Listen to all devices again after MEMBERS_ONLY seconds, to see whether the flood goes on."""
        if self._members_only_until is not None and self._clock() > self._members_only_until:
            self._members_only_until = None
            self._port.subscribe(*self._of("+"))
            self._port.unsubscribe(*self._of(self._members()))

    def _of(self, devices: Iterable[str]) -> list[str]:
        return [route.topic(self._topics, device) for device in devices for route in self._routes]
