# SPDX-License-Identifier: Apache-2.0
"""`splitee broker init` that ended between two of its files is completed by the next one."""

from __future__ import annotations

import os
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from splitee_broker.signing_keys import PACKING_KEY, RELEASE_KEY, SIGNING_KEY, SOFTWARE_KEY

from .conftest import run_broker

pytestmark = pytest.mark.slow

INIT = ("init", "--fleet", "barn", "--name", "hub", "--keep")
ROLES = ("server", "viewer", "homeassistant")


class Killed(BaseException):
    """Ends the command at once."""


def killed_before(rename: int, directory: Path) -> bool:
    """Run `init` up to its file of this number; whether it was ended there, not completed."""
    number, replace = count(), os.replace

    def counting(*arguments: Any, **folders: Any) -> None:
        if next(number) == rename:
            raise Killed
        replace(*arguments, **folders)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", counting)
        try:
            assert run_broker(*INIT, directory=directory).exception is None
        except Killed:
            return True
    return False


def belong_together(certificate: Path, key: Path) -> bool:
    found = x509.load_pem_x509_certificate(certificate.read_bytes()).public_key()
    return found == load_pem_private_key(key.read_bytes(), None).public_key()


def test_second_init_completes_the_files_wherever_the_first_was_killed(tmp_path: Path) -> None:
    for rename in count():
        directory = tmp_path / str(rename)
        if not killed_before(rename, directory):
            break
        assert run_broker(*INIT, directory=directory).exception is None
        for role in ROLES:
            assert (directory / role / f"{role}.toml").exists(), (rename, role)
            assert belong_together(directory / role / "client.crt", directory / role / "client.key"), rename
        for name in ("broker", "health"):
            assert belong_together(*(directory / "broker" / f"{name}.{end}" for end in ("crt", "key"))), (
                rename
            )
        for private, public in (
            (("server", SIGNING_KEY), RELEASE_KEY),
            (("authority", PACKING_KEY), SOFTWARE_KEY),
        ):
            made = load_pem_private_key(directory.joinpath(*private).read_bytes(), None)
            pinned = load_pem_public_key((directory / "authority" / public).read_bytes())
            assert made.public_key() == pinned, rename
    assert rename > 30
