# SPDX-License-Identifier: Apache-2.0
"""The hub's certificate during an invitation: made for this invitation, and trusted only through a proof."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

WEEK = timedelta(days=7)


def hub_context() -> tuple[ssl.SSLContext, bytes]:
    """A TLS 1.3 context with a new key, and the key's certificate, DER."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "splitee invitation")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(issuer_name=name, subject_name=name, public_key=key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - WEEK)
        .not_valid_after(now + WEEK)
        .sign(key, hashes.SHA256())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    with TemporaryDirectory(
        prefix="splitee-"
    ) as folder:  # ssl accepts files only; the folder belongs to this account
        both = Path(folder, "both.pem")
        both.touch(mode=0o600)
        secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        both.write_bytes(secret + certificate.public_bytes(Encoding.PEM))
        context.load_cert_chain(both)
    return context, certificate.public_bytes(Encoding.DER)
