# SPDX-License-Identifier: Apache-2.0
"""The proofs by which both sides show that they know the code, and that nobody is in between."""

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
    """HMAC-SHA256, keyed with the code, over the TLS channel and both nonces, 32 bytes.

    The channel is identified by the SHA-256 of the hub's certificate (`tls-server-end-point`, RFC 5929).
    Somebody in between must show another certificate. So the two sides compute different proofs, and each
    refuses the other's.

    Args:
        code: as `read_code` gives it.
        side: whose proof it is; a proof of one side is not valid for the other.
        certificate: of the hub, DER, as this side sees it.
    """
    channel = hashlib.sha256(certificate).digest()
    message = b"\0".join((CONTEXT, side.encode(), channel + hub_nonce + device_nonce))
    return hmac.digest(code.encode(), message, "sha256")


def is_same(given: bytes, expected: bytes) -> bool:
    """Compares in a time that does not depend on where the two differ."""
    return hmac.compare_digest(given, expected)
