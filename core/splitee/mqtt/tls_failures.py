# SPDX-License-Identifier: Apache-2.0
"""Why TLS has failed, in a user's words: which certificate, or which clock, is at fault."""

from __future__ import annotations

import ssl
import time
from datetime import UTC, datetime

from splitee.errors import (
    BrokerRefused,
    BrokerUntrusted,
    CertificateExpired,
    CertificateForeign,
    CertificateMissing,
    CertificateRevoked,
    ConfigError,
)
from splitee.mqtt.address import BrokerAddress, TlsFiles
from splitee.mqtt.certificate import own_certificate

# Meaning of a broker's TLS alert for the owner of the certificate.
_ALERTS: dict[str, tuple[type[BrokerRefused], str]] = {
    "certificate required": (CertificateMissing, "it wants to know who this is; give --cert and --key"),
    "handshake failure": (CertificateMissing, "it may want to know who this is; give --cert and --key"),
    "unknown ca": (CertificateForeign, "is this client's certificate of another fleet?"),
    "decrypt error": (CertificateForeign, "is this client's certificate of another fleet?"),
    "certificate expired": (CertificateExpired, "this client's is over by the broker's clock"),
    "bad certificate": (CertificateExpired, "this client's is not valid yet by the broker's clock"),
    "certificate revoked": (CertificateRevoked, "this client has been shut out of the fleet"),
}


def tls_failure(address: BrokerAddress, error: ssl.SSLError, tls: TlsFiles | None) -> BrokerRefused:
    """Why the broker or this side rejects the other's certificate, and what to do."""
    if not isinstance(error, ssl.SSLCertVerificationError):
        return _alert(address, error, tls)
    hint = "check the authority's file and the host's name"
    clock = f"this machine's clock says {time.strftime('%Y-%m-%d %H:%M')}"
    if "not yet valid" in error.verify_message:
        hint = f"{clock}; set it (timedatectl)"
    elif "expired" in error.verify_message:
        hint = f"{clock}; set it (timedatectl), or renew the certificate (splitee broker init)"
    return BrokerUntrusted(
        f"broker {address}: its certificate is not trusted ({error.verify_message}): {hint}"
    )


def _alert(address: BrokerAddress, error: ssl.SSLError, tls: TlsFiles | None) -> BrokerRefused:
    reason = (error.reason or str(error)).replace("_", " ").lower()
    kind, hint = next(
        (failure for words, failure in _ALERTS.items() if words in reason),
        (BrokerRefused, "check port and certificates"),
    )
    if kind is CertificateExpired:
        hint += _explained(tls)
    return kind(f"broker {address}: TLS failed ({reason}): {hint}")


def _explained(tls: TlsFiles | None) -> str:
    """What is wrong with this client's certificate; "" if its file is no longer readable."""
    try:
        own = own_certificate(tls)
    except ConfigError:
        return ""
    return "" if own is None else f": {own.explain_refusal(datetime.now(UTC))}"
