# SPDX-License-Identifier: Apache-2.0
"""A paho client for which any incoming data is a sign of life, and that logs only errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from paho.mqtt.client import Client
from paho.mqtt.enums import LogLevel, MessageType, MQTTErrorCode

TOGETHER = 1 << 14  # bytes that are handed to the system at once


class PatientClient(Client):
    """Accepts any data as a sign of life: on a slow link the ping's response is queued behind other data."""

    def set_next_keepalive(self, seconds: int) -> None:
        """For the next connection. Paho's setter refuses: after a silence its state is still connected."""
        self._keepalive = seconds

    def _easy_log(self, level: LogLevel, fmt: str, *args: Any) -> None:
        """Log errors only: paho describes each packet, and discarding that in a logger costs time."""
        if level is LogLevel.MQTT_LOG_ERR:
            super()._easy_log(level, fmt, *args)

    def _packet_write(self) -> MQTTErrorCode:
        """Write small packets together: paho's system call for each takes longer than building one."""
        self._join_packets()
        return super()._packet_write()

    def _join_packets(self) -> None:
        """Join the first packets of the queue into one, as long as they are small and have no follow-up."""
        first = []
        size = 0
        while self._out_packet and _is_small(self._out_packet[0]) and size < TOGETHER:
            first.append(self._out_packet.popleft())
            size += len(first[-1]["packet"])
        if first:
            joined = b"".join(one["packet"] for one in first)
            self._out_packet.appendleft({**first[0], "packet": joined, "to_process": size})

    def loop_misc(self) -> MQTTErrorCode:
        if self._last_bytes_received > self._ping_t:
            self._ping_t = 0.0
        return super().loop_misc()


def _is_small(packet: Mapping[str, Any]) -> bool:
    """Whether it may be joined: it is not partly written, and paho does nothing after it is written."""
    kind = packet["command"] & 0xF0
    acknowledged = kind == MessageType.PUBACK or (kind == MessageType.PUBLISH and packet["qos"] > 0)
    return acknowledged and packet["pos"] == 0 and len(packet["packet"]) < TOGETHER
