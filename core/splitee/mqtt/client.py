# SPDX-License-Identifier: Apache-2.0
"""The paho client for an address: over TCP or websockets, with its account."""

from __future__ import annotations

import socket
from typing import cast

from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from splitee.mqtt.address import BrokerAddress
from splitee.mqtt.patient_client import PatientClient
from splitee.mqtt.read_ahead import ReadAhead


class TcpClient(PatientClient):
    """A paho client that reads ahead."""

    def _create_socket(self) -> ReadAhead:
        return ReadAhead(cast(socket.socket, super()._create_socket()))


def new_client(
    address: BrokerAddress, client_id: str, protocol: MQTTProtocolVersion, connect_timeout: float
) -> PatientClient:
    """A client that is not connected yet and does not reconnect by itself."""
    if address.path is None:
        client: PatientClient = TcpClient(
            CallbackAPIVersion.VERSION2, client_id=client_id, protocol=protocol, reconnect_on_failure=False
        )
    else:
        from splitee.mqtt.websockets import WebsocketClient

        client = WebsocketClient(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            protocol=protocol,
            reconnect_on_failure=False,
            transport="websockets",
        )
        scheme = "https" if address.tls else "http"
        own = {"Host": address.netloc, "Origin": f"{scheme}://{address.netloc}"}
        client.ws_set_options(address.path, own if ":" in address.host else None)  # paho forgets the []
    client.connect_timeout = connect_timeout
    client.username_pw_set(address.username, address.password)
    return client
