# SPDX-License-Identifier: Apache-2.0
"""A client of MQTT v5 that does one thing after the other, and shows all replies of the broker."""

from __future__ import annotations

import contextlib
import math
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self, TypeVar, cast

from paho.mqtt.client import ConnectFlags, MQTTMessage
from paho.mqtt.enums import MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from splitee.mqtt.address import TlsFiles
from splitee.mqtt.client import new_client
from splitee.mqtt.connection import (
    LARGEST_INCOMING,
    disable_nagle,
    linger,
    log_exceptions,
    packet_properties,
)
from splitee.mqtt.in_flight import IN_FLIGHT
from splitee.mqtt.options import LinkOptions
from splitee.mqtt.websockets import raw_socket

LINGER = 1.0  # seconds for the broker to read DISCONNECT
TICK = 0.1  # seconds
T = TypeVar("T")


class ConnectionLost(Exception):
    """The broker has ended the connection, or did not reply in time; the message tells the user which."""


class ReplyTimeout(ConnectionLost):
    """The broker did not reply in time."""


class Client:
    """Used by one thread. Each wait ends at `deadline`, by `time.monotonic`, with `ConnectionLost`."""

    def __init__(
        self,
        link: LinkOptions,
        client_id: str,
        deadline: float,
        *,
        session_expiry: int = 0,
        resumes: bool = False,
        will: tuple[str, bytes] | None = None,
    ) -> None:
        """`session_expiry`: seconds. `resumes`: continue a session that the broker has kept, if there is one.

        `will`: topic and payload; the broker retains it.
        """
        self.link = link
        self.client_id = client_id
        self.session_expiry = session_expiry
        self.session_present = False
        self.properties = Properties(PacketTypes.CONNACK)  # type: ignore[no-untyped-call]
        self._deadline = deadline
        self._connack: ReasonCode | None = None
        self._granted: dict[int, ReasonCode] = {}
        self._acknowledged: dict[int, ReasonCode] = {}
        self._messages: deque[MQTTMessage] = deque()
        self._close_reason = "it closed the connection"
        self._closing = False
        self._window = IN_FLIGHT
        limit = max(1.0, deadline - time.monotonic())
        self._paho = paho = new_client(link.address, client_id, MQTTProtocolVersion.MQTTv5, limit)
        paho.on_socket_open = log_exceptions(disable_nagle)
        paho.on_socket_close = log_exceptions(self._linger)
        paho.on_connect = log_exceptions(self._on_connect)
        paho.on_subscribe = log_exceptions(self._on_subscribe)
        paho.on_publish = log_exceptions(self._on_publish)
        paho.on_message = lambda _client, _data, message: self._messages.append(message)
        paho.on_disconnect = log_exceptions(self._on_disconnect)
        if link.address.tls:
            paho.tls_set_context(tls_context(link))
        if will is not None:
            paho.will_set(*will, qos=1, retain=True)
        self._resumes = resumes
        self._connecting = packet_properties(
            PacketTypes.CONNECT,
            SessionExpiryInterval=session_expiry or None,
            MaximumPacketSize=LARGEST_INCOMING,
        )

    def open(self) -> Self:
        """Connects. ConnectionLost: the broker does not accept it."""
        address = self.link.address
        try:
            self._paho.connect(
                address.host,
                address.port,
                # A client that does not read does not ping either. Paho also limits a TLS handshake by it.
                keepalive=math.ceil(max(1.0, self._deadline - time.monotonic())) + 1,
                clean_start=not self._resumes,
                properties=self._connecting,
            )
        except OSError as error:
            raise ConnectionLost(error.strerror or str(error)) from None
        code = self._wait(lambda: self._connack)
        if code.is_failure:
            raise ConnectionLost(f"it refused a client: {code.getName().lower()}")
        self._window = min(IN_FLIGHT, getattr(self.properties, "ReceiveMaximum", IN_FLIGHT))
        return self

    @property
    def connected(self) -> bool:
        """Whether the connection is open, after reading what the broker has sent."""
        self._transfer(0.0)
        return self._is_open()

    def subscribe(self, *filters: str) -> None:
        """Subscribes, and waits until the subscriptions are in force. ConnectionLost: one is refused."""
        wanted = [(name, SubscribeOptions(qos=1)) for name in filters]
        _, number = self._paho.subscribe(wanted)
        code = self._wait(lambda: self._granted.get(number or 0))
        if code.is_failure:
            raise ConnectionLost(f"it refused a subscription: {code.getName().lower()}")

    def publish(self, topic: str, payload: bytes, *, retain: bool = False, **properties: Any) -> ReasonCode:
        """Publishes at QoS 1; returns the acknowledgement. `properties`: by their names in MQTT v5."""
        return next(self.publish_all([(topic, payload)], retain=retain, **properties))

    def publish_all(
        self, messages: Iterable[tuple[str, bytes]], *, retain: bool = False, **properties: Any
    ) -> Iterator[ReasonCode]:
        """Publishes topics and payloads, 20 in flight; yields the acknowledgement of each."""
        packet = packet_properties(PacketTypes.PUBLISH, **properties)
        under_way: deque[int] = deque()
        for topic, payload in messages:
            while len(under_way) >= self._window:
                yield self._acknowledgement(under_way.popleft())
            sent = self._paho.publish(topic, payload, qos=1, retain=retain, properties=packet)
            under_way.append(sent.mid)
        while under_way:
            yield self._acknowledgement(under_way.popleft())

    def _acknowledgement(self, number: int) -> ReasonCode:
        code = self._wait(lambda: self._acknowledged.get(number))
        del self._acknowledged[number]
        return code

    def next_message(self) -> MQTTMessage:
        """Waits for the next message. ReplyTimeout: none has come by the deadline."""
        self._wait(lambda: self._messages or None)
        return self._messages.popleft()

    def receive(self, seconds: float) -> MQTTMessage | None:
        """The next message; None: none has come in `seconds`."""
        until = time.monotonic() + seconds
        self._transfer(0.0)
        while not self._messages and (left := until - time.monotonic()) > 0:
            self._transfer(min(TICK, left))
            if not self._is_open():
                raise ConnectionLost(self._close_reason)
        return self._messages.popleft() if self._messages else None

    def wait_until_lost(self) -> None:
        """Waits until the broker ends the connection. ReplyTimeout: it does not."""
        while self.connected:
            if time.monotonic() > self._deadline:
                raise ReplyTimeout("it did not end a connection in time")
            self._transfer(TICK)

    def drop_connection(self) -> None:
        """Closes the socket without DISCONNECT, like a device that loses power."""
        opened = self._paho.socket()
        if opened is not None:
            below = raw_socket(cast(socket.socket, opened))
            with contextlib.suppress(OSError):
                below.shutdown(socket.SHUT_RDWR)
            below.close()

    def close(self) -> None:
        """Sends DISCONNECT; the broker keeps no session."""
        self._closing = True
        with contextlib.suppress(OSError, ValueError):
            self._paho.disconnect(
                properties=packet_properties(PacketTypes.DISCONNECT, SessionExpiryInterval=0)
            )
            self._transfer(0.0)
        self.drop_connection()

    def _wait(self, found: Callable[[], T | None]) -> T:
        while (value := found()) is None:
            if time.monotonic() > self._deadline:
                raise ReplyTimeout("it gave no reply in time")
            self._transfer(TICK)
            if found() is None and self._connack is not None and not self._is_open():
                raise ConnectionLost(self._close_reason)
        return value

    def _is_open(self) -> bool:
        return self._paho.socket() is not None and self._paho.is_connected()

    def _transfer(self, seconds: float) -> None:
        """Transfers packets, waiting for them at most `seconds`."""
        if self._paho.socket() is not None:
            code = self._paho.loop(seconds)
            if code != MQTTErrorCode.MQTT_ERR_SUCCESS and self._connack is None:
                raise ConnectionLost(self._close_reason)

    def _on_connect(
        self, _client: Any, _data: Any, flags: ConnectFlags, code: ReasonCode, properties: Properties
    ) -> None:
        self.session_present = flags.session_present
        self.properties = properties
        self._connack = code

    def _on_subscribe(
        self, _client: Any, _data: Any, number: int, reasons: list[ReasonCode], _properties: Properties
    ) -> None:
        self._granted[number] = next((reason for reason in reasons if reason.is_failure), reasons[0])

    def _on_publish(
        self, _client: Any, _data: Any, number: int, reason: ReasonCode, _properties: Properties
    ) -> None:
        self._acknowledged[number] = reason

    def _on_disconnect(
        self, _client: Any, _data: Any, flags: Any, reason: ReasonCode, _properties: Properties
    ) -> None:
        if flags.is_disconnect_packet_from_server:
            self._close_reason = f"it ended the connection: {reason.getName().lower()}"

    def _linger(self, _client: Any, _data: Any, closed: socket.socket) -> None:
        """Lets the broker read DISCONNECT, which is lost if a socket with unread data is closed."""
        if self._closing:
            linger(closed, LINGER)


def tls_context(link: LinkOptions) -> ssl.SSLContext:
    """The TLS context with a link's files, or with the system's authorities."""
    return (link.tls or TlsFiles()).context()
