# SPDX-License-Identifier: Apache-2.0
"""How both sides show that they know the code, and that nobody stands between them."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import Literal

NONCE = 32  # bytes
CONTEXT = b"splitee pairing 1"

Side = Literal["device", "hub"]


def new_nonce() -> bytes:
    return secrets.token_bytes(NONCE)


def proof(code: str, side: Side, certificate: bytes, hub_nonce: bytes, device_nonce: bytes) -> bytes:
    """HMAC-SHA256 by the code over the TLS channel and what is new in it, 32 bytes.

    The channel is identified by the SHA-256 of the hub's certificate (`tls-server-end-point`, RFC 5929).
    Somebody who stands in between has to show another certificate, so each side computes another proof, and
    refuses that of the other.

    Args:
        code: as `read_code` gives it.
        side: whose proof it is; the proof of one side is not valid for the other.
        certificate: of the hub, DER, as this side sees it.
    """
    channel = hashlib.sha256(certificate).digest()
    message = b"\0".join((CONTEXT, side.encode(), channel + hub_nonce + device_nonce))
    return hmac.digest(code.encode(), message, "sha256")


def is_same(given: bytes, expected: bytes) -> bool:
    """Compares in a time that does not depend on where the two differ."""
    return hmac.compare_digest(given, expected)
