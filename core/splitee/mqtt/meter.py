# SPDX-License-Identifier: Apache-2.0
"""What is told of each message that a link moves, and how large MQTT makes it."""

from __future__ import annotations

from typing import Protocol

from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties, VariableByteIntegers

_UNSET = vars(Properties(PacketTypes.PUBLISH)).keys()  # type: ignore[no-untyped-call]


class Meter(Protocol):
    """Counts messages; it is called on several threads, and must not raise."""

    def published(self, topic: str, payload: int, headers: int) -> None:
        """A message was handed to the broker. `payload`, `headers`: bytes of it, and what MQTT adds."""

    def received(self, topic: str, payload: int, headers: int) -> None:
        """A message has come from the broker."""


def headers_of(topic: str, payload: int, properties: Properties | None) -> int:
    """Bytes that MQTT adds to a publication at QoS 1: fixed header, topic, packet identifier, properties.

    Its acknowledgement, pings, TLS and TCP are not among them.
    """
    # Paho tries every property there is when it packs none: that costs as much as receiving the message.
    is_empty = properties is None or vars(properties).keys() == _UNSET
    packed = 1 if is_empty else len(properties.pack())  # type: ignore[union-attr]
    variable = 2 + len(topic.encode()) + 2 + packed
    length: bytes = VariableByteIntegers.encode(variable + payload)  # type: ignore[no-untyped-call]
    return 1 + len(length) + variable
