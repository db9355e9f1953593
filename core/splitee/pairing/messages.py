# SPDX-License-Identifier: Apache-2.0
"""The messages between hub and device when a device joins, in this order; all travel inside TLS 1.3."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

VERSION = 1
PORT = 8884

Nonce = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Digest = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Name = Annotated[str, msgspec.Meta(max_length=64)]
Pem = Annotated[bytes, msgspec.Meta(max_length=8192)]

Reason = Literal["code", "over", "name", "request", "busy", "failed"]
"""Why the hub sends a device away.

In this order: the code is wrong; the invitation has ended meanwhile; the name is taken or not valid; the
request is not for a certificate; another device is being served; the hub could not write or sign.
"""


class _Message(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    pass


class Greeting(_Message, frozen=True):
    """Hub: its version, and a nonce that distinguishes this connection from all others."""

    version: int
    nonce: Nonce


class Proof(_Message, frozen=True):
    """Device: proves that it knows the code and sees the hub's own certificate. A wrong proof is one try."""

    nonce: Nonce
    proof: Digest


class Welcome(_Message, frozen=True):
    """Hub: proves that it knows the code, too. The device sends nothing else before it has checked this.

    Attributes:
        name: the device's name; empty: the device proposes one.
    """

    proof: Digest
    fleet: Name
    name: Name


class Request(_Message, frozen=True):
    """Device: its name, and a certificate signing request (PEM) for the key that it has made."""

    name: Name
    request: Pem


class Granted(_Message, frozen=True):
    """Hub: the content of a bundle, without the key. PEM.

    Attributes:
        broker: its address.
        release_key: the public key for releases; empty: the fleet has none.
        software_key: the public key for software; empty: the fleet has none.
    """

    certificate: Pem
    authority: Pem
    broker: Annotated[str, msgspec.Meta(max_length=512)]
    release_key: Pem
    software_key: Pem


class Stored(_Message, frozen=True):
    """Device: it has written everything durably."""


class Confirmed(_Message, frozen=True):
    """Hub: the invitation is used; a former certificate of the device is revoked."""


class Refused(_Message, frozen=True):
    """Hub: its last message, instead of any other."""

    reason: Reason


Message = Greeting | Proof | Welcome | Request | Granted | Stored | Confirmed | Refused
