"""One MQTT v5 connection through paho: made, kept moving, taken up again, its failures in a user's words."""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags
from paho.mqtt.enums import MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from splitee.errors import (
    BrokerRefused,
    BrokerUntrusted,
    CertificateExpired,
    CertificateForeign,
    CertificateMissing,
    CertificateRevoked,
)
from splitee.mqtt.address import BrokerAddress
from splitee.mqtt.client import new_client
from splitee.mqtt.http_answer import HttpAnswer, ask_for_http
from splitee.mqtt.in_flight import IN_FLIGHT
from splitee.mqtt.probe import answers_mqtt_311, speaks_mqtt_311_only
from splitee.mqtt.websockets import below_websocket

CONNECT_LIMIT = 5.0  # seconds for one try
SESSION_EXPIRY = 3600  # seconds that the broker keeps our subscriptions and their queue while we are away
LARGEST_INCOMING = 16 << 20  # bytes of a packet
LINGER = 2.0  # seconds that the broker has to read the last word
LOOP = 1.0  # seconds; paho wakes up earlier when there is something to do
CERTAIN = 3  # closed connections, each beside an answer to MQTT 3.1.1: that is no coincidence
# What passes, and what it means.
TEMPORARY = {
    "Server unavailable": "the broker takes no clients now",
    "Server busy": "the broker takes no clients now",
    "Quota exceeded": "the broker has as many clients, or as much traffic, as it allows",
    "Connection rate exceeded": "too many clients connect at once",
}

log = logging.getLogger(__name__)


class TryFailed(Exception):
    """One try to connect failed in a way that may pass."""


class Unanswered(TryFailed):
    """The address accepts a connection, and then gives no answer of MQTT v5."""


class Closed(Unanswered):
    """It closes the connection instead."""


class Garbage(Unanswered):
    """It sends something else instead."""


class Connection:
    """Owns the paho client. All but `say_goodbye` belongs to one thread at a time."""

    def __init__(
        self,
        address: BrokerAddress,
        client_id: str,
        keepalive: int,
        closing: threading.Event,
        on_accepted: Callable[[bool, Properties], None],
        on_lost: Callable[[], None],
    ) -> None:
        """`on_accepted` gets "the broker kept our session" and CONNACK's properties, before any message."""
        self._address = address
        self._client_id = client_id
        self._keepalive = keepalive
        self._closing = closing
        self._on_accepted = on_accepted
        self._on_lost = on_lost
        self._trouble = _Trouble()
        self._answer: ReasonCode | None = None
        self._lack: str | None = None  # what the broker does not offer, and we need
        self._tls: ssl.SSLContext | None = None
        self._farewell: str | None = None  # why the broker, or the keep-alive, ended the connection
        self._opened = False
        self.client = self._make_client()

    def _make_client(self) -> Client:
        client = new_client(self._address, self._client_id, MQTTProtocolVersion.MQTTv5, CONNECT_LIMIT)
        client.max_inflight_messages = client.max_queued_messages = IN_FLIGHT
        errors = logging.Logger("paho", logging.ERROR)
        errors.addHandler(self._trouble)
        client.enable_logger(errors)
        client.on_socket_open = quietly(_send_at_once)
        client.on_socket_close = quietly(self._let_broker_read)
        # Without this, paho lets publishers write to the socket as well as the network thread: packets tear.
        client.on_socket_register_write = lambda *_: None
        client.on_connect = quietly(self._note_answer)
        client.on_disconnect = quietly(self._note_end)
        return client

    def use_tls(self, context: ssl.SSLContext) -> None:
        self._tls = context
        self.client.tls_set_context(context)

    def connect(self, limit: float) -> None:
        """One try of about `limit` seconds: TCP, TLS, CONNECT and the answer. TryFailed or BrokerRefused."""
        deadline = time.monotonic() + limit
        answer = self._ask(deadline) if self._opened else self._ask_a_stranger(deadline)
        if answer.is_failure:
            raise _refusal(self._address, self._client_id, answer)
        if self._lack is not None:
            self._hang_up()
            raise BrokerRefused(f"broker {self._address} {self._lack}")
        self._opened = True

    def _ask_a_stranger(self, deadline: float) -> ReasonCode:
        """As `_ask`, of an address where nobody has answered yet: it finds out what does.

        A broker of MQTT 3.1.1 may close the connection at a CONNECT of v5, as a full one does at any.
        """
        for _ in range(CERTAIN):
            try:
                return self._ask(deadline)
            except Unanswered as failure:
                if not self._answers_311_only(failure, max(1.0, deadline - time.monotonic())):
                    raise
                if isinstance(failure, Garbage):
                    break
        raise speaks_mqtt_311_only(self._address)

    def _answers_311_only(self, failure: Unanswered, limit: float) -> bool:
        """Whether what gave v5 no answer gives MQTT 3.1.1 one. BrokerRefused, TryFailed: it is no broker."""
        web = None if self._address.path else ask_for_http(self._address, self._tls, limit)
        if web is not None:
            raise _web_failure(self._address, web) from None
        if not isinstance(failure, Closed | Garbage):
            return False  # silence: it may be slow
        answers = answers_mqtt_311(self._address, self._client_id, self._tls, limit)
        if isinstance(failure, Garbage) and not answers:
            raise BrokerRefused(f"broker {self._address}: {failure}; check the address") from None
        return answers

    def _ask(self, deadline: float) -> ReasonCode:
        """Dials, and returns the broker's answer."""
        self._answer = self._lack = None
        self._trouble.take()
        dialled = False
        try:
            self._dial()
            dialled = True
            return self._wait_for_answer(deadline)
        except ssl.SSLError as error:
            self._hang_up()
            raise _tls_failure(self._address, error) from None
        except HttpAnswer as answer:
            self._hang_up()
            raise _web_failure(self._address, answer) from None
        except OSError as error:
            self._hang_up()
            raise _no_answer(self._address, error, dialled) from None

    def _dial(self) -> None:
        if self._opened:
            self.client.reconnect()
            return
        # connect() starts a clean session, reconnect() takes the session up: what an earlier process left
        # unread on the broker belongs to no one.
        properties = packet_properties(
            PacketTypes.CONNECT, SessionExpiryInterval=SESSION_EXPIRY, MaximumPacketSize=LARGEST_INCOMING
        )
        self.client.connect(self._address.host, self._address.port, self._keepalive, properties=properties)

    def _wait_for_answer(self, deadline: float) -> ReasonCode:
        code = MQTTErrorCode.MQTT_ERR_SUCCESS
        while code == MQTTErrorCode.MQTT_ERR_SUCCESS:
            code = self.client.loop(0.2)
            if self._answer is not None:
                return self._answer
            if time.monotonic() > deadline:
                raise TimeoutError("it accepts, but gives no MQTT answer")
            if self._closing.is_set():
                raise ConnectionAbortedError("closed")
        if code == MQTTErrorCode.MQTT_ERR_PROTOCOL:
            self._hang_up()
            raise Garbage("what answers there does not speak MQTT v5")
        raise self._trouble.take() or ConnectionError("it closed the connection without an MQTT answer")

    def run(self) -> str:
        """Moves packets until the connection ends; returns why it did, in small letters."""
        while True:
            if self._closing.is_set() and self.client.is_connected():
                self.say_goodbye(with_will=True)
            try:
                code = self.client.loop(LOOP)
            except Exception:
                log.exception("defect in the MQTT client; connecting again")
                self._hang_up()
                return "internal error"
            if code:
                error = self._trouble.take()
                lost = error.strerror if isinstance(error, OSError) else None
                return (self._farewell or lost or "connection lost").lower()

    def say_goodbye(self, with_will: bool) -> None:
        """DISCONNECT, with or without the last will; nobody will come back for the session's queue."""
        words = "Disconnect with will message" if with_will else "Normal disconnection"
        reason = ReasonCode(PacketTypes.DISCONNECT, words)
        properties = packet_properties(PacketTypes.DISCONNECT, SessionExpiryInterval=0)
        self.client.disconnect(reason, properties)

    def _let_broker_read(self, _client: Client, _data: Any, closed: socket.socket) -> None:
        """Wait until the broker has read DISCONNECT and hung up.

        To close while there is something to read resets a connection: what was sent last may be lost with it,
        and the session would stay at the broker, with all that is queued for it, until it expires.
        """
        if not self._closing.is_set():
            return
        until = time.monotonic() + LINGER
        with contextlib.suppress(OSError):
            below = below_websocket(closed)
            below.settimeout(LINGER)
            below.shutdown(socket.SHUT_WR)
            while below.recv(1 << 16) and time.monotonic() < until:
                pass

    def _hang_up(self) -> None:
        self._on_lost()
        opened = self.client.socket()
        if opened is not None:
            with contextlib.suppress(OSError):
                opened.close()

    def _note_answer(
        self, _client: Client, _data: Any, flags: ConnectFlags, reason: ReasonCode, properties: Properties
    ) -> None:
        self._answer = reason
        self._farewell = None
        self._lack = None if reason.is_failure else _lack(properties)
        if not reason.is_failure and self._lack is None:
            self._on_accepted(flags.session_present, properties)

    def _note_end(
        self, _client: Client, _data: Any, flags: DisconnectFlags, reason: ReasonCode, _properties: Properties
    ) -> None:
        if flags.is_disconnect_packet_from_server or reason.getName() == "Keep alive timeout":
            self._farewell = reason.getName()
        self._on_lost()


class _Trouble(logging.Handler):
    """Keeps the error that paho only logs when a socket fails: it tells TLS from other troubles."""

    _error: Exception | None = None

    def emit(self, record: logging.LogRecord) -> None:
        self._error = next((part for part in record.args or () if isinstance(part, Exception)), None)

    def take(self) -> Exception | None:
        error, self._error = self._error, None
        return error


def quietly(callback: Callable[..., None]) -> Callable[..., None]:
    """An exception in a callback would end the network thread while the client still says connected."""

    def wrapped(*arguments: Any) -> None:
        try:
            callback(*arguments)
        except Exception:
            log.exception("defect in %s", callback.__name__)

    return wrapped


def packet_properties(kind: int, **fields: Any) -> Properties:
    """The properties of one packet (`PacketTypes`), by their names in MQTT v5; None leaves one out."""
    properties = Properties(kind)  # type: ignore[no-untyped-call]
    for name, value in fields.items():
        if value is not None:
            setattr(properties, name, value)
    return properties


def _send_at_once(_client: Client, _data: Any, opened: socket.socket) -> None:
    below_websocket(opened).setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _no_answer(address: BrokerAddress, error: OSError, accepted: bool) -> TryFailed:
    """`accepted`: there was a connection, and of websockets their handshake, before the error came."""
    words = error.strerror or str(error)
    if not isinstance(error, ConnectionError) or isinstance(error, ConnectionRefusedError):
        return Unanswered(words) if accepted else TryFailed(words)
    other = "mqtts" if address.path is None else "wss"
    hint = "is this its TLS port?" if address.tls else f"if it speaks TLS, use {other}://"
    if not accepted:
        return TryFailed(f"{words}; {hint}")
    return Closed(f"{words}, as a full broker does (max_connections); {hint}")


def _web_failure(address: BrokerAddress, answer: HttpAnswer) -> Exception:
    if answer.passes:
        return TryFailed(f"a web server or proxy answers: {answer}")
    return answer.refusal(address)


def _lack(properties: Properties) -> str | None:
    """What we need, and a broker says in its CONNACK that it does not offer; None: nothing."""
    if getattr(properties, "MaximumQoS", 1) < 1:
        return "offers QoS 0 only (Maximum QoS): use one with QoS 1, which no message of a fleet does without"
    if not getattr(properties, "RetainAvailable", 1):
        return "keeps no retained messages (Retain Available): use one that does; a fleet's state is in them"
    if not getattr(properties, "WildcardSubscriptionAvailable", 1):
        return "takes no wildcard subscriptions: use one that does; a fleet's members are found by them"
    return None


def _refusal(address: BrokerAddress, client_id: str, answer: ReasonCode) -> Exception:
    reason = answer.getName()
    if reason in TEMPORARY:
        return TryFailed(f"{reason.lower()}: {TEMPORARY[reason]}")
    if reason == "Unsupported protocol version":
        return BrokerRefused(f"broker {address} does not speak MQTT v5: use one that does")
    return BrokerRefused(
        f"broker {address} refused {client_id!r}: {reason.lower()}; check user, password, certificate and id"
    )


# What a broker's TLS alert means for the one whose certificate it is about.
_ALERTS: dict[str, tuple[type[BrokerRefused], str]] = {
    "certificate required": (CertificateMissing, "it wants to know who this is; give --cert and --key"),
    "handshake failure": (CertificateMissing, "it may want to know who this is; give --cert and --key"),
    "unknown ca": (CertificateForeign, "is this client's certificate of another fleet?"),
    "decrypt error": (CertificateForeign, "is this client's certificate of another fleet?"),
    "certificate expired": (CertificateExpired, "this client needs a new one (splitee broker add-device)"),
    "bad certificate": (CertificateExpired, "this client's is not valid yet by the broker's clock"),
    "certificate revoked": (CertificateRevoked, "this client has been shut out of the fleet"),
}


def _tls_failure(address: BrokerAddress, error: ssl.SSLError) -> Exception:
    if isinstance(error, ssl.SSLEOFError):
        return TryFailed("it broke off the TLS handshake; is this its TLS port?")
    if not isinstance(error, ssl.SSLCertVerificationError):
        reason = (error.reason or str(error)).replace("_", " ").lower()
        kind, hint = next(
            (answer for words, answer in _ALERTS.items() if words in reason),
            (BrokerRefused, "check port and certificates"),
        )
        if kind is CertificateExpired:
            hint += f"; {_clock()}; set the one that is wrong (timedatectl)"
        return kind(f"broker {address}: TLS failed ({reason}): {hint}")
    hint = "check the authority's file and the host's name"
    if "not yet valid" in error.verify_message:
        hint = f"{_clock()}; set it (timedatectl)"
    elif "expired" in error.verify_message:
        hint = f"{_clock()}; set it (timedatectl), or renew the certificate (splitee broker init)"
    return BrokerUntrusted(
        f"broker {address}: its certificate is not trusted ({error.verify_message}): {hint}"
    )


def _clock() -> str:
    return f"this machine's clock says {time.strftime('%Y-%m-%d %H:%M')}"
