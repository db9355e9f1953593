# SPDX-License-Identifier: Apache-2.0
"""The key that a device makes for itself, and the check that a certificate is for it."""

from __future__ import annotations

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_public_key,
)
from cryptography.x509.oid import NameOID

from splitee.errors import PairingEnded
from splitee.pairing.messages import Granted


class OwnKey:
    """A new key on P-256, which never leaves this device."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())

    def __repr__(self) -> str:
        return "OwnKey(...)"  # keeps the key out of logs

    @property
    def pem(self) -> bytes:
        return self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def request(self, name: str) -> bytes:
        """A certificate signing request, PEM."""
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)

    def check(self, granted: Granted, name: str) -> None:
        """Raises PairingEnded: `granted` is not an identity of `name` with this key."""
        try:
            certificate = x509.load_pem_x509_certificate(granted.certificate)
            authority = x509.load_pem_x509_certificate(granted.authority)
            certificate.verify_directly_issued_by(authority)
            names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
            if [each.value for each in names] != [name]:
                raise ValueError("the certificate is another's")
            if certificate.public_key() != self._key.public_key():
                raise ValueError("the certificate is for another key")
            for what, pinned in (("release", granted.release_key), ("software", granted.software_key)):
                if pinned and not isinstance(load_pem_public_key(pinned), Ed25519PublicKey):
                    raise ValueError(f"the {what} key is not an Ed25519 key")
        except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm) as error:
            reason = str(error) or "a signature is wrong"
            raise PairingEnded(
                f"the hub's reply is not an identity for {name} ({reason}); nothing was changed here"
            ) from None
