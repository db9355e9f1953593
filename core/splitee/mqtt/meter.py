# SPDX-License-Identifier: Apache-2.0
"""The interface for counting a link's messages, and the size of MQTT's headers."""

from __future__ import annotations

from bisect import bisect_right
from typing import Protocol

from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

_UNSET = vars(Properties(PacketTypes.PUBLISH)).keys()  # type: ignore[no-untyped-call]
_LENGTHS = (1 << 7, 1 << 14, 1 << 21)  # from which on a variable byte integer has a byte more


class Meter(Protocol):
    """Counts messages; several threads call it, and it must not raise."""

    def published(self, topic: str, payload: int, headers: int) -> None:
        """Note a published message. `payload`, `headers`: its bytes, and those that MQTT adds."""

    def received(self, topic: str, payload: int, headers: int) -> None:
        """Note a message from the broker."""


def headers_of(topic: str, payload: int, properties: Properties | None) -> int:
    """Bytes that MQTT adds to a publication at QoS 1: fixed header, topic, packet identifier, properties.

    Its acknowledgement, pings, TLS and TCP are not among them.
    """
    # To pack an empty set, paho tries every property, which costs as much as receiving the message.
    is_empty = properties is None or vars(properties).keys() == _UNSET
    packed = 1 if is_empty else len(properties.pack())  # type: ignore[union-attr]
    variable = 2 + len(topic.encode()) + 2 + packed
    return 2 + bisect_right(_LENGTHS, variable + payload) + variable
