# SPDX-License-Identifier: Apache-2.0
"""A device's retained topics, and how they are cleared when the device is gone for good."""

from __future__ import annotations

from collections.abc import Iterable

from splitee.mqtt.port import Port
from splitee.protocol.routes import ROUTES
from splitee.protocol.topics import Topics


def retained_topics(topics: Topics, device: str) -> tuple[str, ...]:
    """All retained topics of a device, whether the device or the server publishes there."""
    return tuple(route.topic(topics, device) for route in ROUTES if route.of_device and route.retained)


def clear(port: Port, cleared: Iterable[str]) -> tuple[str, ...]:
    """Clear the retained messages on these topics; returns the topics that were published to.

    Subscribers receive an empty message.
    """
    return tuple(topic for topic in cleared if port.publish(topic, b"", retain=True))
