# SPDX-License-Identifier: Apache-2.0
"""The key by which a fleet's releases are signed: the server has it, the devices have its public half."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

SIGNING_KEY, RELEASE_KEY = "release.key", "release.pub"


def new_release_key() -> dict[str, bytes]:
    """Both halves in PEM, by their files' names."""
    key = Ed25519PrivateKey.generate()
    return {
        SIGNING_KEY: key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        RELEASE_KEY: key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
    }


def pinned_key(directory: Path) -> dict[str, bytes]:
    """The devices' half; none in a fleet of an older release, until `init` is run again."""
    there = directory / "authority" / RELEASE_KEY
    return {RELEASE_KEY: there.read_bytes()} if there.exists() else {}
