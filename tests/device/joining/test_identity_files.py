# SPDX-License-Identifier: Apache-2.0
"""A device's identity on disk: the old one stays whole until the new one is written."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from file_limit import room_for

from splitee.errors import ConfigError, StateError
from splitee_device.joining.exchange import Joined
from splitee_device.joining.identity_files import IdentityFiles


def identity(of: str, *, is_signed: bool = True) -> Joined:
    parts = [
        f"{part} of {of}".encode() for part in ("key", "certificate", "authority", "release", "software")
    ]
    return Joined("pi-1", of, "mqtts://hub:8883", *parts[:3], *(parts[3:] if is_signed else (b"", b"")))


def contents(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


@pytest.mark.parametrize("room", [12, 300])
def test_old_identity_stays_when_the_new_one_cannot_be_written(tmp_path: Path, room: int) -> None:
    """With room for 300 bytes, only the settings are too large."""
    files = IdentityFiles(tmp_path)
    files.write(identity("old"), {"data": "/srv/images" * 30})
    before = contents(tmp_path)
    with room_for(room), pytest.raises(StateError, match=r"cannot write .*File too large"):
        files.write(identity("new"), {})
    IdentityFiles(tmp_path)
    assert contents(tmp_path) == before


class Killed(BaseException):
    """The process ends here."""


def killed_before(rename: int, files: IdentityFiles) -> bool:
    """Writes a new identity, unless it is killed before the rename of this number; whether it was killed."""
    number = count()

    def counting(real: Callable[..., None]) -> Callable[..., None]:
        def renamed(*arguments: Any, **folders: Any) -> None:
            if next(number) == rename:
                raise Killed
            real(*arguments, **folders)

        return renamed

    with pytest.MonkeyPatch.context() as patch:
        for name in ("rename", "replace"):
            patch.setattr(os, name, counting(getattr(os, name)))
        try:
            files.write(identity("new"), {})
        except Killed:
            return True
    return False


def test_power_cut_leaves_the_old_or_the_new_identity_whole(tmp_path: Path) -> None:
    for rename in count():
        directory = tmp_path / str(rename)
        directory.mkdir()
        IdentityFiles(directory).write(identity("old"), {})
        was_killed = killed_before(rename, IdentityFiles(directory))
        files = IdentityFiles(directory)
        parts = [path.read_bytes().split()[-1] for path in directory.glob("**/*.[ckp][reu][tyb]")]
        fleet = tomllib.loads((directory / "device.toml").read_text())["fleet"]
        assert parts == [fleet.encode()] * 5, rename
        assert len(list((directory / "device").iterdir())) == 3
        assert not [path for path in directory.iterdir() if path.name.startswith(".")]
        files.write(identity("new"), {})
        assert (directory / "device" / "client.key").read_bytes() == b"key of new"
        if not was_killed:
            break
    assert rename == 11


def test_identity_without_a_release_key_has_no_key_files(tmp_path: Path) -> None:
    IdentityFiles(tmp_path).write(identity("new", is_signed=False), {})
    assert "release" not in (tmp_path / "device.toml").read_text()
    assert not (tmp_path / "release.pub").exists() and not (tmp_path / "software.pub").exists()


@pytest.mark.parametrize("text", ['data = """\na\n', "[table\n", "\xff"])
def test_settings_that_cannot_be_parsed_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "device.toml").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match="expected a device's settings"):
        IdentityFiles(tmp_path)


def test_settings_with_a_quoted_key_are_refused_and_left_unchanged(tmp_path: Path) -> None:
    """A second key of the same name would make the file invalid."""
    before = '"id" = "pi-1"\n'
    (tmp_path / "device.toml").write_text(before)
    files = IdentityFiles(tmp_path)
    with pytest.raises(ConfigError, match="expected one key a line, without quotes"):
        files.write(identity("new"), {})
    assert contents(tmp_path) == {"device.toml": before.encode()}
