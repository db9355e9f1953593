# SPDX-License-Identifier: Apache-2.0
"""One MQTT v5 connection through paho: connecting, running, reconnecting, and clear errors."""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags
from paho.mqtt.enums import MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from splitee.errors import BrokerRefused
from splitee.mqtt.address import BrokerAddress, TlsFiles
from splitee.mqtt.client import new_client
from splitee.mqtt.http_response import HttpResponse, request_http
from splitee.mqtt.in_flight import IN_FLIGHT
from splitee.mqtt.packet_loop import PacketLoop
from splitee.mqtt.patient_client import PatientClient
from splitee.mqtt.probe import speaks_mqtt_311_only, supports_mqtt_311
from splitee.mqtt.refusals import (
    Closed,
    Garbage,
    MissingFeature,
    NoReply,
    TryFailed,
    missing_feature,
    no_reply,
    refusal,
    web_failure,
)
from splitee.mqtt.tls_failures import tls_failure
from splitee.mqtt.websockets import raw_socket

CONNECT_LIMIT = 5.0  # seconds for one try
LONGEST_KEEP_ALIVE = 60  # seconds
LARGEST_INCOMING = 16 << 20  # bytes of a packet
LINGER = 2.0  # seconds that the broker has to read the last packet
LOOP_TIMEOUT = 1.0  # seconds between two checks of the keep-alive, where there is nothing else to do
PROBES = 3  # connections closed although MQTT 3.1.1 gets a reply, before the broker counts as 3.1.1 only

log = logging.getLogger(__name__)


class Connection:
    """Owns the paho client. All methods except `disconnect` belong to one thread at a time."""

    def __init__(
        self,
        address: BrokerAddress,
        files: TlsFiles | None,
        client_id: str,
        keepalive: int,
        session_expiry: int,
        closing: threading.Event,
        on_accepted: Callable[[bool, Properties], None],
        on_lost: Callable[[], None],
        read_delay: float,
    ) -> None:
        """`on_accepted` gets "the broker kept our session" and CONNACK's properties, before any message."""
        self._address = address
        self._files = files
        self._client_id = client_id
        self._keepalive = self._next_keepalive = keepalive
        self._session_expiry = session_expiry
        self._closing = closing
        self._on_accepted = on_accepted
        self._on_lost = on_lost
        self._last_error = _LastError()
        self._connack: ReasonCode | None = None
        self._missing_feature: str | None = None  # what the broker does not offer, and we need
        self._context: ssl.SSLContext | None = None
        self._close_reason: str | None = None  # why the broker, or the keep-alive, ended the connection
        self._up_since = 0.0
        self._opened = False
        self.client = self._make_client()
        self._loop = PacketLoop(self.client, read_delay)

    def _make_client(self) -> PatientClient:
        client = new_client(self._address, self._client_id, MQTTProtocolVersion.MQTTv5, CONNECT_LIMIT)
        client.max_inflight_messages = client.max_queued_messages = IN_FLIGHT
        errors = logging.Logger("paho", logging.ERROR)
        errors.addHandler(self._last_error)
        client.enable_logger(errors)
        client.on_socket_open = log_exceptions(disable_nagle)
        client.on_socket_close = log_exceptions(self._linger)
        client.on_connect = log_exceptions(self._on_connack)
        client.on_disconnect = log_exceptions(self._on_disconnect)
        return client

    def use_tls(self, context: ssl.SSLContext) -> None:
        self._context = context
        self.client.tls_set_context(context)

    def connect(self, limit: float) -> None:
        """Try once for about `limit` seconds: TCP, TLS, CONNECT, CONNACK. TryFailed or BrokerRefused."""
        deadline = time.monotonic() + limit
        connack = self._connect(deadline) if self._opened else self._connect_first(deadline)
        if connack.is_failure:
            raise refusal(self._address, self._client_id, connack)
        if self._missing_feature is not None:
            self._close_socket()
            raise MissingFeature(f"broker {self._address} {self._missing_feature}")
        self._opened = True

    def _connect_first(self, deadline: float) -> ReasonCode:
        """As `_connect`, for an address that has never replied; finds out what kind of server is there.

        A broker of MQTT 3.1.1 may close the connection when it receives a CONNECT of v5. A full broker closes
        every connection.
        """
        for _ in range(PROBES):
            try:
                return self._connect(deadline)
            except NoReply as failure:
                if not self._speaks_311_only(failure, max(1.0, deadline - time.monotonic())):
                    raise
                if isinstance(failure, Garbage):
                    break
        raise speaks_mqtt_311_only(self._address)

    def _speaks_311_only(self, failure: NoReply, limit: float) -> bool:
        """Whether the server speaks MQTT 3.1.1 but not v5. BrokerRefused, TryFailed: it is no broker."""
        web = None if self._address.path else request_http(self._address, self._context, limit)
        if web is not None:
            raise web_failure(self._address, web) from None
        if not isinstance(failure, Closed | Garbage):
            return False  # silence: it may be slow
        supports_it = supports_mqtt_311(self._address, self._client_id, self._context, limit)
        if isinstance(failure, Garbage) and not supports_it:
            raise BrokerRefused(f"broker {self._address}: {failure}; check the address") from None
        return supports_it

    def _connect(self, deadline: float) -> ReasonCode:
        """Dials, and returns the reason code of the broker's CONNACK."""
        self._connack = self._missing_feature = None
        self._last_error.take()
        dialled = False
        try:
            self._dial()
            dialled = True
            return self._wait_for_connack(deadline)
        except ssl.SSLEOFError:
            self._close_socket()
            raise TryFailed("it broke off the TLS handshake; is this its TLS port?") from None
        except ssl.SSLError as error:
            self._close_socket()
            raise tls_failure(self._address, error, self._files) from None
        except HttpResponse as response:
            self._close_socket()
            raise web_failure(self._address, response) from None
        except OSError as error:
            self._close_socket()
            raise no_reply(self._address, error, dialled) from None

    def _dial(self) -> None:
        if self._opened:
            self.client.set_next_keepalive(self._next_keepalive)
            self.client.reconnect()
            return
        # connect() starts a clean session and so discards messages that an earlier process left unread on the
        # broker; reconnect() resumes the session.
        properties = packet_properties(
            PacketTypes.CONNECT,
            SessionExpiryInterval=self._session_expiry or None,
            MaximumPacketSize=LARGEST_INCOMING,
        )
        self.client.connect(self._address.host, self._address.port, self._keepalive, properties=properties)

    def _wait_for_connack(self, deadline: float) -> ReasonCode:
        code = MQTTErrorCode.MQTT_ERR_SUCCESS
        while code == MQTTErrorCode.MQTT_ERR_SUCCESS:
            code = self._loop.run_once(0.2)
            if self._connack is not None:
                return self._connack
            if time.monotonic() > deadline:
                raise TimeoutError("it accepts, but gives no MQTT reply")
            if self._closing.is_set():
                raise ConnectionAbortedError("closed")
        if code == MQTTErrorCode.MQTT_ERR_PROTOCOL:
            self._close_socket()
            raise Garbage("the server there does not speak MQTT v5")
        raise self._last_error.take() or ConnectionError("it closed the connection without an MQTT reply")

    def run(self) -> str:
        """Process packets until the connection ends; returns the reason in lower case."""
        while True:
            if self._closing.is_set() and self.client.is_connected():
                self.disconnect(with_will=True)
            try:
                code = self._loop.run_once(LOOP_TIMEOUT)
            except Exception:
                log.exception("defect in the MQTT client; connecting again")
                self._close_socket()
                return "internal error"
            if code:
                error = self._last_error.take()
                lost = error.strerror if isinstance(error, OSError) else None
                return (self._close_reason or lost or "connection lost").lower()

    def disconnect(self, with_will: bool) -> None:
        """Send DISCONNECT, with or without the last will, and end the session."""
        words = "Disconnect with will message" if with_will else "Normal disconnection"
        reason = ReasonCode(PacketTypes.DISCONNECT, words)
        properties = packet_properties(PacketTypes.DISCONNECT, SessionExpiryInterval=0)
        self.client.disconnect(reason, properties)

    def _linger(self, _client: Client, _data: Any, closed: socket.socket) -> None:
        """Wait until the broker has read DISCONNECT and hung up.

        Closing a socket that has unread data resets the connection, and the last packets may be lost. The
        broker would then keep the session and its queued messages until the session expires.
        """
        if self._closing.is_set():
            linger(closed, LINGER)

    def _close_socket(self) -> None:
        self._on_lost()
        opened = self.client.socket()
        if opened is not None:
            with contextlib.suppress(OSError):
                opened.close()

    def _on_connack(
        self, _client: Client, _data: Any, flags: ConnectFlags, reason: ReasonCode, properties: Properties
    ) -> None:
        self._connack = reason
        self._close_reason = None
        self._up_since = time.monotonic()
        self._missing_feature = None if reason.is_failure else missing_feature(properties)
        if not reason.is_failure and self._missing_feature is None:
            self._on_accepted(flags.session_present, properties)

    def _on_disconnect(
        self, _client: Client, _data: Any, flags: DisconnectFlags, reason: ReasonCode, _properties: Properties
    ) -> None:
        is_silent = reason.getName() == "Keep alive timeout"
        if flags.is_disconnect_packet_from_server or is_silent:
            self._close_reason = "nothing came for too long" if is_silent else reason.getName()
        if is_silent:
            self._adapt_keepalive(time.monotonic() - self._up_since)
        self._on_lost()

    def _adapt_keepalive(self, lasted: float) -> None:
        """Double the next keep-alive after an early silence: on a slow path one message can take as long."""
        keepalive = self.client.keepalive
        soon = lasted < 10 * keepalive
        longer = min(2 * keepalive, max(LONGEST_KEEP_ALIVE, self._keepalive))
        self._next_keepalive = longer if soon and keepalive else self._keepalive


class _LastError(logging.Handler):
    """Keeps the error that paho only logs when a socket fails; it separates TLS errors from others."""

    _error: Exception | None = None

    def emit(self, record: logging.LogRecord) -> None:
        self._error = next((part for part in record.args or () if isinstance(part, Exception)), None)

    def take(self) -> Exception | None:
        error, self._error = self._error, None
        return error


def log_exceptions(callback: Callable[..., None]) -> Callable[..., None]:
    """Log exceptions of a callback, which would otherwise end the network thread unnoticed."""

    def wrapped(*arguments: Any) -> None:
        try:
            callback(*arguments)
        except Exception:
            log.exception("defect in %s", callback.__name__)

    return wrapped


class _Packed(Properties):
    """Constant properties, packed once: paho packs properties again for each packet, which is slow."""

    _packed: bytes

    def __init__(self, kind: int, fields: Mapping[str, Any]) -> None:
        super().__init__(kind)  # type: ignore[no-untyped-call]
        for name, value in fields.items():
            setattr(self, name, value)
        packed = super().pack()  # type: ignore[no-untyped-call]
        object.__setattr__(self, "_packed", packed)  # paho's __setattr__ accepts MQTT's names only

    def pack(self) -> bytes:
        return self._packed


@lru_cache(maxsize=32)
def packet_properties(kind: int, **fields: Any) -> Properties | None:
    """The properties of one packet (`PacketTypes`) by their MQTT v5 names; those that are None are left out.

    Returns None without properties: an empty set costs paho more than the rest of a publication.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    return _Packed(kind, given) if given else None


def linger(closed: socket.socket, seconds: float) -> None:
    """End the sending direction, and wait for at most `seconds` until the broker closes the connection."""
    until = time.monotonic() + seconds
    with contextlib.suppress(OSError):
        below = raw_socket(closed)
        below.settimeout(seconds)
        below.shutdown(socket.SHUT_WR)
        while below.recv(1 << 16) and time.monotonic() < until:
            pass


def disable_nagle(_client: Client, _data: Any, opened: socket.socket) -> None:
    raw_socket(opened).setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
