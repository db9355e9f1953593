# SPDX-License-Identifier: Apache-2.0
"""Ed25519 signatures of releases, by the fleet's server or its operator, for devices that pin the key.

A signature covers the fleet, the device, the model's run or the software's version, the digest of the bundle,
and the time. Each kind of release, and each kind of rollback, has a context of its own.
cryptography is imported only when something is signed or verified.
"""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import msgspec
from msgspec.structs import replace

from splitee.errors import ConfigError, ModelError, SoftwareError
from splitee.protocol.fields import ReleaseAction
from splitee.protocol.inference import ModelOffer, ReleaseOffer, SoftwareOffer

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

CONTEXTS: Mapping[tuple[type[ReleaseOffer], ReleaseAction], str] = {  # no other message begins so
    (ModelOffer, "install"): "splitee release 1",
    (ModelOffer, "roll back"): "splitee release roll back 1",
    (SoftwareOffer, "install"): "splitee software 1",
    (SoftwareOffer, "roll back"): "splitee software roll back 1",
}
SOFTWARE_CONTEXT = b"splitee wheels 1\n"  # nor with this
Offer = TypeVar("Offer", bound=ReleaseOffer)
BEGIN, END = "-----BEGIN PUBLIC KEY-----", "-----END PUBLIC KEY-----"
PREFIX = bytes.fromhex("302a300506032b6570032100")  # before the 32 bytes of every Ed25519 key (RFC 8410)


class ReleaseSigner:
    """Signs a fleet's releases."""

    def __init__(self, key_file: Path) -> None:
        """Raises ConfigError: it cannot be read, or holds no Ed25519 key."""
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        try:
            key = load_pem_private_key(_read(key_file, "--signing-key"), None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            reason = str(error).partition(".")[0]
            raise ConfigError(
                f"--signing-key {key_file}: expected an Ed25519 key in PEM without a password ({reason})"
            ) from None
        if not isinstance(key, Ed25519PrivateKey):
            raise ConfigError(
                f"--signing-key {key_file}: expected an Ed25519 key, got {type(key).__name__.strip('_')}; "
                "`splitee broker init` makes one, server/release.key"
            )
        self._key: Ed25519PrivateKey = key

    def sign(self, offer: Offer, fleet: str, device: str, *, at: int | None = None) -> Offer:
        """The offer, signed for a device. `at`: milliseconds since the epoch; None: now."""
        dated = replace(offer, signed_at=time.time_ns() // 1_000_000 if at is None else at)
        return replace(dated, signature=self._key.sign(_statement(dated, fleet, device)).hex())

    def sign_software(self, manifest: bytes) -> str:
        """The signature of the manifest of a file of software, hexadecimal."""
        return self._key.sign(SOFTWARE_CONTEXT + manifest).hex()


@dataclass(frozen=True)
class ReleaseKey:
    """The public half, which a device pins."""

    raw: bytes  # 32

    @classmethod
    def read(cls, path: Path, of: Literal["release", "software"] = "release") -> ReleaseKey:
        """From a PEM file; `of`: what is signed by it.

        Raises:
            ConfigError: it cannot be read, or holds no Ed25519 public key.
        """
        text = _read(path, f"--{of}-key").decode(errors="replace").strip()
        try:
            if not (text.startswith(BEGIN) and text.endswith(END)):
                raise ValueError
            der = base64.b64decode("".join(text.removeprefix(BEGIN).removesuffix(END).split()), validate=True)
            if not der.startswith(PREFIX) or len(der) != len(PREFIX) + 32:
                raise ValueError
        except (ValueError, binascii.Error):
            raise ConfigError(
                f"--{of}-key {path}: expected an Ed25519 public key in PEM, the {of}.pub of this device's "
                "bundle"
            ) from None
        return cls(der[len(PREFIX) :])

    def check(self, offer: ReleaseOffer, fleet: str, device: str) -> None:
        """Raises ModelError: the offer is not signed, or not by this key for this device."""
        if not offer.signature:
            raise ModelError(
                "the release is not signed, and this device accepts only signed ones: "
                "`splitee release --signing-key FILE` signs it"
            )
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(
                bytes.fromhex(offer.signature), _statement(offer, fleet, device)
            )
        except InvalidSignature:
            raise ModelError(
                f"the release's signature is not this fleet's for {device} and {_content(offer)!r}: "
                "sign it with the key whose release.pub is in the device's bundle"
            ) from None

    def check_software(self, manifest: bytes, signature: str) -> None:
        """Raises SoftwareError: the manifest of a file of software is not signed by this key.

        Args:
            signature: 64 bytes, hexadecimal.
        """
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        try:
            key = Ed25519PublicKey.from_public_bytes(self.raw)
            key.verify(bytes.fromhex(signature), SOFTWARE_CONTEXT + manifest)
        except InvalidSignature:
            raise SoftwareError(
                "the software's signature is not this fleet's, or the file is damaged: pack it with the key "
                "whose software.pub is in the device's bundle (`splitee pack --signing-key FILE`)"
            ) from None


def _statement(offer: ReleaseOffer, fleet: str, device: str) -> bytes:
    context = CONTEXTS[type(offer), offer.action]
    return msgspec.json.encode([context, fleet, device, _content(offer), offer.release, offer.signed_at])


def _content(offer: ReleaseOffer) -> str:
    """What the bundle must contain: a model of this run, or software of this version."""
    return (
        offer.version
        if isinstance(offer, SoftwareOffer)
        else offer.run
        if isinstance(offer, ModelOffer)
        else ""
    )


def _read(path: Path, flag: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{flag} {path}: {error.strerror}") from None
