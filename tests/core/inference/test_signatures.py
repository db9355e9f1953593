# SPDX-License-Identifier: Apache-2.0
"""Files that are given as the key to sign releases with."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from splitee.errors import ConfigError
from splitee.inference.signatures import ReleaseSigner

ED25519, UNASSIGNED = bytes.fromhex("06032b6570"), bytes.fromhex("06032b657f")  # object identifiers


def test_key_of_an_unsupported_algorithm_is_refused_in_one_line(tmp_path: Path) -> None:
    sound = Ed25519PrivateKey.generate().private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    text = base64.encodebytes(sound.replace(ED25519, UNASSIGNED)).decode()
    file = tmp_path / "release.key"
    file.write_text(f"-----BEGIN PRIVATE KEY-----\n{text}-----END PRIVATE KEY-----\n")
    with pytest.raises(ConfigError, match="expected an Ed25519 key in PEM") as refusal:
        ReleaseSigner(file)
    assert "\n" not in str(refusal.value)
