# SPDX-License-Identifier: Apache-2.0
"""A connection of MQTT v5 that needs only one descriptor here: a socket on which CONNECT was accepted."""

from __future__ import annotations

import errno
import socket
import ssl
import struct
from typing import cast

from paho.mqtt.enums import MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

from splitee.mqtt.address import BrokerAddress
from splitee.mqtt.client import new_client
from splitee.mqtt.websockets import raw_socket

TIMEOUT = 8  # seconds in which the broker must reply
KEEP_ALIVE = 300  # seconds
LOCAL_ERRORS = {errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM}
CLOSED = "it closed the connection without a reply, as at max_connections, or without a descriptor left"


class Refused(Exception):
    """Another connection was not possible. `is_local`: because of this machine's limit, not the broker's."""

    def __init__(self, why: str, *, is_local: bool = False) -> None:
        super().__init__(why)
        self.is_local = is_local


def connect(address: BrokerAddress, client_id: str, tls: ssl.SSLContext | None) -> socket.socket:
    """A connection that the broker has accepted.

    Raises:
        Refused: the broker has not accepted it.
    """
    try:
        opened = _dial(address, client_id, tls)
        try:
            _handshake(opened, address, client_id)
        except BaseException:
            opened.close()
            raise
        return opened
    except TimeoutError:
        raise Refused(f"no reply in {TIMEOUT} s, as without a descriptor left (LimitNOFILE)") from None
    except (ConnectionResetError, ConnectionAbortedError, BrokenPipeError, ssl.SSLEOFError):
        raise Refused(CLOSED) from None
    except OSError as error:
        raise Refused(error.strerror or str(error), is_local=error.errno in LOCAL_ERRORS) from None


def _dial(address: BrokerAddress, client_id: str, tls: ssl.SSLContext | None) -> socket.socket:
    """TCP, TLS and websocket through paho; a running paho client would need two more descriptors."""
    client = new_client(address, client_id, MQTTProtocolVersion.MQTTv5, TIMEOUT)
    if tls is not None:
        client.tls_set_context(tls)
    client.connect_async(address.host, address.port, keepalive=TIMEOUT)  # it also limits the handshake
    opened = cast(socket.socket, client._create_socket())
    raw_socket(opened).settimeout(TIMEOUT)
    return opened


def _handshake(opened: socket.socket, address: BrokerAddress, client_id: str) -> None:
    opened.send(connect_packet(address, client_id))
    _, length = _read(opened, 2)
    if length > 127:
        length += 128 * (_read(opened, 1)[0] - 1)
    code = _read(opened, length)[1]
    if code:
        raise Refused(ReasonCode(PacketTypes.CONNACK, identifier=code).getName().lower())


def _read(opened: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = opened.recv(count - len(data))
        if not more:
            raise ConnectionAbortedError
        data += more
    return data


def connect_packet(address: BrokerAddress, client_id: str) -> bytes:
    """CONNECT of MQTT v5 (3.1): a clean start, no session, the account of the address."""
    flags = 0x02
    fields = [client_id.encode()]
    if address.username is not None:
        flags |= 0x80
        fields.append(address.username.encode())
    if address.password is not None:
        flags |= 0x40
        fields.append(address.password.encode())
    body = b"\x00\x04MQTT\x05" + struct.pack("!BHB", flags, KEEP_ALIVE, 0)
    body += b"".join(struct.pack("!H", len(each)) + each for each in fields)
    return b"\x10" + _remaining_length(len(body)) + body


def _remaining_length(count: int) -> bytes:
    """A length in MQTT's form (1.5.5): seven bits a byte, the lowest first."""
    length = bytearray()
    while count > 127:
        length.append(count & 127 | 128)
        count >>= 7
    return bytes([*length, count])
