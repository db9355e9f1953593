# SPDX-License-Identifier: Apache-2.0
"""The device's part of a pairing conversation with a hub, and its checks of what the hub sends."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

from splitee.errors import (
    BrokerUnreachable,
    MalformedMessage,
    PairingEnded,
    VersionMismatch,
)
from splitee.mqtt.address import BrokerAddress
from splitee.mqtt.backoff import delays, tries
from splitee.pairing.channel import Channel
from splitee.pairing.messages import (
    VERSION,
    Confirmed,
    Granted,
    Greeting,
    Proof,
    Reason,
    Refused,
    Request,
    Stored,
    Welcome,
)
from splitee.pairing.proofs import is_same, new_nonce, proof
from splitee.protocol.topics import check_name
from splitee_device.joining.own_key import OwnKey

CONNECT_TIMEOUT = 10.0  # seconds
PROVE_TIMEOUT = 20.0  # seconds; the hub may be slow, and its clock is not this one's
SIGN_TIMEOUT = 90.0  # seconds; other devices may be served first
RETRY_FOR = 120.0  # seconds during which a connection that is closed at once is tried again
LONGEST_PAUSE = 4.0  # seconds between two of these tries

REFUSALS: dict[Reason, str] = {
    "code": "it does not accept this code: look at what `splitee broker invite` shows there; if that shows "
    "no attempt from here, {hub} is another machine",
    "over": "the invitation has ended meanwhile, or all its places are taken: run `splitee broker invite` "
    "there again",
    "name": "the fleet knows a device {name} already: choose another --id, or, if this one replaces it, "
    "run `splitee broker invite {name}` there",
    "request": "it refuses the name {name}, or this device's request: see its output there",
    "busy": "it serves other devices: try again",
    "failed": "it could not write or sign: see its output there",
}


T = TypeVar("T", Greeting, Welcome, Granted, Confirmed)


@dataclass(frozen=True)
class Hub:
    """Where a hub waits for devices."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Joined:
    """What a device has received, after all checks. All fields but names and address are PEM."""

    name: str
    fleet: str
    broker: str
    key: bytes
    certificate: bytes
    authority: bytes
    release_key: bytes  # empty: the fleet has none
    software_key: bytes  # likewise


class Exchange:
    """One conversation with a hub, in a `with` of `connected`."""

    def __init__(self, hub: Hub, channel: Channel, certificate: bytes) -> None:
        self._hub = hub
        self._channel = channel
        self._certificate = certificate

    def prove(self, code: str) -> tuple[str, str]:
        """Proves that this device knows the code, and checks that the hub does; returns fleet and name.

        The name is empty if the device is to propose one. Until the hub has proved itself, the device sends
        nothing but a proof that is valid for this connection alone.

        Raises:
            PairingEnded: the hub sends this device away, or does not know the code.
            VersionMismatch: the hub is of another release.
        """
        greeting = self._receive(Greeting)
        if greeting.version != VERSION:
            raise VersionMismatch(
                f"{self._hub}: it has pairing version {greeting.version}, this device {VERSION}: upgrade the "
                "older of the two"
            )
        nonce = new_nonce()
        both = (self._certificate, greeting.nonce, nonce)
        self._channel.send(Proof(nonce, proof(code, "device", *both)))
        welcome = self._receive(Welcome)
        if not is_same(welcome.proof, proof(code, "hub", *both)):
            raise PairingEnded(
                f"{self._hub}: it does not know the code, so it is not the hub that showed it; nothing "
                "was told to it"
            )
        if welcome.name:
            check_name(welcome.name, f"{self._hub}: name")
        return check_name(welcome.fleet, f"{self._hub}: fleet"), welcome.name

    def request(self, fleet: str, name: str) -> Joined:
        """Makes a key, and has the hub sign a certificate for it.

        Raises:
            PairingEnded: the hub refuses, or its reply is not an identity of `name`.
        """
        key = OwnKey()
        self._channel.extend(SIGN_TIMEOUT)
        self._channel.send(Request(name, key.request(name)))
        granted = self._receive(Granted, name)
        if not BrokerAddress.parse(granted.broker).tls:
            raise PairingEnded(f"{self._hub}: its broker {granted.broker} has no TLS; nothing was changed")
        key.check(granted, name)
        return Joined(
            name,
            fleet,
            granted.broker,
            key.pem,
            granted.certificate,
            granted.authority,
            granted.release_key,
            granted.software_key,
        )

    def confirm(self) -> None:
        """Tells the hub that everything is stored, and waits until earlier certificates are revoked.

        Raises:
            PairingEnded: the hub says that it could not do that.
        """
        self._channel.extend(SIGN_TIMEOUT)
        self._channel.send(Stored())
        self._receive(Confirmed)

    def _receive(self, kind: type[T], name: str = "") -> T:
        reply = self._channel.receive_or_refusal(kind)
        if isinstance(reply, Refused):
            raise PairingEnded(f"{self._hub}: {REFUSALS[reply.reason].format(hub=self._hub, name=name)}")
        return reply


@contextmanager
def connected(hub: Hub, show: Callable[[str], None]) -> Iterator[Exchange]:
    """A conversation with `hub` by TLS 1.3.

    No authority has signed its certificate: `Exchange.prove` shows whose it is.

    Args:
        show: receives a line for the user when this device has to wait.

    Raises:
        BrokerUnreachable: nothing listens there, or it is silent, or it does not pair.
    """
    try:
        with _secured(hub, show) as secured:
            certificate = secured.getpeercert(binary_form=True) or b""
            yield Exchange(hub, Channel(secured, PROVE_TIMEOUT), certificate)
    except MalformedMessage as error:
        raise BrokerUnreachable(f"{hub}: it is no hub that invites ({error}); is that its --port?") from None
    except ssl.SSLError as error:
        reason = (error.reason or "closed").lower().replace("_", " ")
        raise BrokerUnreachable(
            f"{hub}: it is no hub that invites (TLS: {reason}); is that its --port?"
        ) from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise BrokerUnreachable(f"{hub}: the connection was lost ({reason}); run it again") from None


def _secured(hub: Hub, show: Callable[[str], None]) -> ssl.SSLSocket:
    """A connection whose certificate has not been checked.

    A hub that serves as many devices as it can closes each further connection at once. The connection is
    therefore tried again.

    Raises:
        BrokerUnreachable: nothing listens there, or all connections are closed.
        OSError: it does not speak TLS, or not in time.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    is_told = False
    for _ in tries(RETRY_FOR, delays(longest=LONGEST_PAUSE)):
        try:
            bare = socket.create_connection((hub.host, hub.port), timeout=CONNECT_TIMEOUT)
        except (OSError, UnicodeError) as error:
            raise BrokerUnreachable(_nobody(hub, error)) from None
        with suppress(ssl.SSLEOFError, ConnectionError):
            return context.wrap_socket(bare)
        if not is_told:
            is_told = True
            show(
                f"{hub}: it closes the connection: many devices join at once, or it is no hub that invites; "
                f"trying again for {RETRY_FOR:.0f} s"
            )
    raise BrokerUnreachable(
        f"{hub}: it closes each connection: it has no room for one more, or is no hub that invites; "
        "is that its --port?"
    )


def _nobody(hub: Hub, error: Exception) -> str:
    if isinstance(error, ConnectionRefusedError):
        return (
            f"{hub}: no hub waits there; an invitation ends when it is used, after its time, or with the "
            "fifth wrong code: run `splitee broker invite` there again"
        )
    reason = getattr(error, "strerror", None) or str(error) or "no reply"
    return f"{hub}: {reason}; is the name right, and the port open in the hub's firewall?"
