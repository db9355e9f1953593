# SPDX-License-Identifier: Apache-2.0
"""A device's identity on its disk: the one before stays whole until the new one is."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from splitee.errors import ConfigError, StateError
from splitee_device.joining.exchange import Joined
from splitee_device.joining.identity_files import IdentityFiles


def identity(of: str, release_key: bytes = b"public") -> Joined:
    parts = (f"{part} of {of}".encode() for part in ("key", "certificate", "authority"))
    return Joined("pi-1", "barn", "mqtts://hub:8883", *parts, release_key, release_key and b"of software")


def contents(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file of this process can be larger, in bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_cannot_be_written_leaves_the_identity_that_was_there(tmp_path: Path) -> None:
    files = IdentityFiles(tmp_path)
    files.write(identity("old"), {})
    before = contents(tmp_path)
    with room_for(12), pytest.raises(StateError, match=r"cannot write .*File too large"):
        files.write(identity("new"), {})
    IdentityFiles(tmp_path)
    assert contents(tmp_path) == before


def test_a_power_cut_between_the_renames(tmp_path: Path) -> None:
    IdentityFiles(tmp_path).write(identity("old"), {})
    before = contents(tmp_path)
    (tmp_path / "device").rename(tmp_path / ".device.old")
    assert contents(tmp_path) != before
    IdentityFiles(tmp_path)
    assert contents(tmp_path) == before


def test_a_fleet_without_a_release_key(tmp_path: Path) -> None:
    IdentityFiles(tmp_path).write(identity("new", release_key=b""), {})
    assert "release" not in (tmp_path / "device.toml").read_text()
    assert not (tmp_path / "release.pub").exists() and not (tmp_path / "software.pub").exists()


@pytest.mark.parametrize("text", ['data = """\na\n', "[table\n", "\xff"])
def test_settings_that_cannot_be_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "device.toml").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match="expected a device's settings"):
        IdentityFiles(tmp_path)


def test_settings_that_lines_do_not_tell_apart(tmp_path: Path) -> None:
    """Two keys of one name would be none; they are left as they are."""
    before = '"id" = "pi-1"\n'
    (tmp_path / "device.toml").write_text(before)
    files = IdentityFiles(tmp_path)
    with pytest.raises(ConfigError, match="expected one key a line, without quotes"):
        files.write(identity("new"), {})
    assert contents(tmp_path) == {"device.toml": before.encode()}
