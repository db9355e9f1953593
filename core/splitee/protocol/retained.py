# SPDX-License-Identifier: Apache-2.0
"""What a broker retains of a device, and how it is cleared when the device is gone for good."""

from __future__ import annotations

from collections.abc import Iterable

from splitee.mqtt.port import Port
from splitee.protocol.routes import ROUTES
from splitee.protocol.topics import Topics


def retained_topics(topics: Topics, device: str) -> tuple[str, ...]:
    """The topics of a device on which a broker retains something, whoever writes there."""
    return tuple(route.topic(topics, device) for route in ROUTES if route.of_device and route.retained)


def clear(port: Port, cleared: Iterable[str]) -> tuple[str, ...]:
    """Have the broker forget what it retains on these topics; those that it was told of.

    Whoever subscribes to them hears of it by an empty message.
    """
    return tuple(topic for topic in cleared if port.publish(topic, b"", retain=True))
