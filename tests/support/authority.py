# SPDX-License-Identifier: Apache-2.0
"""A certificate authority for one test."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from splitee.mqtt.address import TlsFiles


class Authority:
    """A certificate authority for one test, and the files that it signs."""

    def __init__(self, directory: Path, name: str) -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.file = directory / f"{name}.pem"
        certificate = self._build(self._name, self._key).add_extension(
            x509.BasicConstraints(True, None), True
        )
        self.file.write_bytes(self._sign(certificate))

    def issue(self, name: str, from_day: int = -1, to_day: int = 1) -> TlsFiles:
        """A certificate for `name`, and for 127.0.0.1, valid from `from_day` to `to_day` in days from now."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        certificate = self._directory / f"{name}.crt"
        certificate.write_bytes(
            self._sign(self._build(subject, key, from_day, to_day).add_extension(names, False))
        )
        private = self._directory / f"{name}.key"
        private.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        private.chmod(0o644)  # Mosquitto, started by root, reads it as its own user
        return TlsFiles(self.file, certificate, private)

    def _build(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, from_day: int = -1, to_day: int = 1
    ) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder(issuer_name=self._name, subject_name=subject, public_key=key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + datetime.timedelta(from_day))
            .not_valid_after(now + datetime.timedelta(to_day))
        )

    def _sign(self, builder: x509.CertificateBuilder) -> bytes:
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
