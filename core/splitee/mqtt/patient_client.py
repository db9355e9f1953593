# SPDX-License-Identifier: Apache-2.0
"""A paho client that takes whatever comes for a sign of life, and tells of errors alone."""

from __future__ import annotations

from typing import Any

from paho.mqtt.client import Client
from paho.mqtt.enums import LogLevel, MQTTErrorCode


class PatientClient(Client):
    """Paho hangs up when no answer to its ping has come in time. A slow link carries that behind all else."""

    def set_next_keepalive(self, seconds: int) -> None:
        """For the next connection. Paho's own setter refuses: of a silent one it does not note the end."""
        self._keepalive = seconds

    def _easy_log(self, level: LogLevel, fmt: str, *args: Any) -> None:
        """Paho describes each packet that it moves, and it costs to have a logger throw that away."""
        if level is LogLevel.MQTT_LOG_ERR:
            super()._easy_log(level, fmt, *args)

    def loop_misc(self) -> MQTTErrorCode:
        if self._last_bytes_received > self._ping_t:
            self._ping_t = 0.0
        return super().loop_misc()
