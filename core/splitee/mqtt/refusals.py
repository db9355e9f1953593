# SPDX-License-Identifier: Apache-2.0
"""Reasons for a failed connection: messages for the user, and whether another try may help."""

from __future__ import annotations

from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from splitee.errors import BrokerRefused
from splitee.mqtt.address import BrokerAddress
from splitee.mqtt.http_response import HttpResponse

# Reasons that may be temporary, and what they mean.
TEMPORARY = {
    "Server unavailable": "the broker takes no clients now",
    "Server busy": "the broker takes no clients now",
    "Quota exceeded": "the broker has as many clients, or as much traffic, as it allows",
    "Connection rate exceeded": "too many clients connect at once",
}


class MissingFeature(BrokerRefused):
    """The broker accepts the connection, but lacks a feature that a fleet needs."""


class NoMqtt5(MissingFeature):
    """The broker does not support MQTT v5."""


class TryFailed(Exception):
    """One try to connect failed for a reason that may be temporary."""


class NoReply(TryFailed):
    """The address accepts a connection, but does not respond in MQTT v5."""


class Closed(NoReply):
    """The address closes the connection instead."""


class Garbage(NoReply):
    """The address sends something else instead."""


def no_reply(address: BrokerAddress, error: OSError, accepted: bool) -> TryFailed:
    """`accepted`: the connection, and the handshake of websockets, succeeded before the error."""
    words = error.strerror or str(error)
    if not isinstance(error, ConnectionError) or isinstance(error, ConnectionRefusedError):
        return NoReply(words) if accepted else TryFailed(words)
    other = "mqtts" if address.path is None else "wss"
    hint = "is this its TLS port?" if address.tls else f"if it speaks TLS, use {other}://"
    if not accepted:
        return TryFailed(f"{words}; {hint}")
    return Closed(f"{words}, as a full broker does (max_connections); {hint}")


def web_failure(address: BrokerAddress, response: HttpResponse) -> Exception:
    if response.is_temporary:
        return TryFailed(f"a web server or proxy replies: {response}")
    return response.refusal(address)


NO_QOS_1 = "offers QoS 0 only (Maximum QoS): use one with QoS 1, which all messages of a fleet need"
NO_RETAINED = "keeps no retained messages (Retain Available): use one that does; a fleet's state is in them"
# Reasons of a broker that does not accept our last will.
NOT_OFFERED = {"QoS not supported": NO_QOS_1, "Retain not supported": NO_RETAINED}


def missing_feature(properties: Properties) -> str | None:
    """The needed feature that a broker's CONNACK says is missing; None: nothing is missing."""
    if getattr(properties, "MaximumQoS", 1) < 1:
        return NO_QOS_1
    if not getattr(properties, "RetainAvailable", 1):
        return NO_RETAINED
    if not getattr(properties, "WildcardSubscriptionAvailable", 1):
        return "takes no wildcard subscriptions: use one that does; a fleet's members are found by them"
    return None


def refusal(address: BrokerAddress, client_id: str, code: ReasonCode) -> Exception:
    reason = code.getName()
    if reason in TEMPORARY:
        return TryFailed(f"{reason.lower()}: {TEMPORARY[reason]}")
    if reason in NOT_OFFERED:
        return MissingFeature(f"broker {address} {NOT_OFFERED[reason]}")
    if reason == "Unsupported protocol version":
        return NoMqtt5(f"broker {address} does not speak MQTT v5: use one that does")
    return BrokerRefused(
        f"broker {address} refused {client_id!r}: {reason.lower()}; check user, password, certificate and id"
    )
