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

The code is wrong; the invitation has ended meanwhile; the name is taken or none; the request is no
certificate's; another device is being served; the hub could not write or sign.
"""


class _Message(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    pass


class Greeting(_Message, frozen=True):
    """Hub: the version that it speaks, and a nonce that makes this connection unlike all others."""

    version: int
    nonce: Nonce


class Proof(_Message, frozen=True):
    """Device: proves that it knows the code and sees the hub's own certificate. A wrong proof is a try."""

    nonce: Nonce
    proof: Digest


class Welcome(_Message, frozen=True):
    """Hub: proves that it knows the code, too. Before the device has checked this, it sends nothing else.

    Attributes:
        name: what the device is called; empty: what it proposes itself.
    """

    proof: Digest
    fleet: Name
    name: Name


class Request(_Message, frozen=True):
    """Device: the name that it goes by, and a certificate signing request (PEM) for the key it has made."""

    name: Name
    request: Pem


class Granted(_Message, frozen=True):
    """Hub: all that a bundle holds, but for the key. PEM.

    Attributes:
        broker: its address.
        release_key: which releases are signed by; empty in a fleet that has none.
        software_key: which software is signed by; likewise.
    """

    certificate: Pem
    authority: Pem
    broker: Annotated[str, msgspec.Meta(max_length=512)]
    release_key: Pem
    software_key: Pem


class Stored(_Message, frozen=True):
    """Device: it has written all of it, durably."""


class Confirmed(_Message, frozen=True):
    """Hub: the invitation is used; a certificate that the device had before is revoked."""


class Refused(_Message, frozen=True):
    """Hub: instead of any of its messages, its last one."""

    reason: Reason


Message = Greeting | Proof | Welcome | Request | Granted | Stored | Confirmed | Refused
