# SPDX-License-Identifier: Apache-2.0
"""The keys that sign a fleet's releases and its software; devices have the public halves.

The server has the key for releases, because it releases the trained models. The key for software stays with
the authority: whoever has it can run any code on the devices.
"""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

SIGNING_KEY, RELEASE_KEY = "release.key", "release.pub"
PACKING_KEY, SOFTWARE_KEY = "software.key", "software.pub"
PINNED = (RELEASE_KEY, SOFTWARE_KEY)


def new_key(private: str, public: str) -> dict[str, bytes]:
    """Both halves in PEM, by the names of their files."""
    key = Ed25519PrivateKey.generate()
    return {
        private: key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        public: key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
    }


def pinned_keys(directory: Path) -> dict[str, bytes]:
    """The public halves; in a fleet of an older release some are missing until `init` is run again."""
    there = {name: directory / "authority" / name for name in PINNED}
    return {name: path.read_bytes() for name, path in there.items() if path.exists()}
