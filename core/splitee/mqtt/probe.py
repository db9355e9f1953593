# SPDX-License-Identifier: Apache-2.0
"""Tests whether an address that does not respond to MQTT v5 supports MQTT 3.1.1."""

from __future__ import annotations

import contextlib
import ssl
import time

from paho.mqtt.enums import MQTTErrorCode, MQTTProtocolVersion

from splitee.mqtt.address import BrokerAddress
from splitee.mqtt.client import new_client
from splitee.mqtt.refusals import NoMqtt5


def supports_mqtt_311(
    address: BrokerAddress, client_id: str, tls: ssl.SSLContext | None, limit: float
) -> bool:
    """Whether a CONNECT of MQTT 3.1.1 gets any CONNACK within about `limit` seconds."""
    client = new_client(address, client_id, MQTTProtocolVersion.MQTTv311, limit)
    if tls is not None:
        client.tls_set_context(tls)
    replies: list[object] = []
    client.on_connect = lambda *reply: replies.append(reply)
    deadline = time.monotonic() + limit
    with contextlib.suppress(OSError, ValueError):
        client.connect(address.host, address.port)
        code = MQTTErrorCode.MQTT_ERR_SUCCESS
        while not replies and code == MQTTErrorCode.MQTT_ERR_SUCCESS and time.monotonic() < deadline:
            code = client.loop(0.2)
        client.disconnect()
        client.loop(0.2)  # sends it
    opened = client.socket()
    if opened is not None:
        opened.close()
    return bool(replies)


def speaks_mqtt_311_only(address: BrokerAddress) -> NoMqtt5:
    return NoMqtt5(
        f"broker {address} does not speak MQTT v5: it speaks MQTT 3.1.1 only; use a broker that speaks v5"
    )
