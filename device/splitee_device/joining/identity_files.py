# SPDX-License-Identifier: Apache-2.0
"""A device's identity on its disk, in the layout that install.sh makes from a bundle.

`device.toml`, `release.pub` and `software.pub` are readable by all. Certificate and key are in `device/`,
readable by the folder's owner alone.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from splitee.durable import sync_folder, unwritable, write_atomically
from splitee.errors import ConfigError, StateError, StateInUse
from splitee_device.joining.exchange import Joined

SETTINGS, IDENTITY = "device.toml", "device"
OWN_KEYS = ("id", "fleet", "broker", "ca", "cert", "key", "release-key", "software-key")
BESIDE = ("release.pub", "software.pub", SETTINGS)  # files that leave the identity's folder at the end
NEW, OLD = f".{IDENTITY}.new", f".{IDENTITY}.old"


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Makes the folder if it is missing, and keeps it for this process: another one would mix two identities.

    Raises:
        StateError: it cannot be made or opened.
        StateInUse: another process joins there.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o755)
        folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise _unwritable(directory, error) from None
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(folder)
        raise StateInUse(
            f"{directory}: another `splitee join` works there; wait until it has ended"
        ) from None
    try:
        yield
    finally:
        os.close(folder)


class IdentityFiles:
    """The identity files of one device, below `directory`, which is `locked`."""

    def __init__(self, directory: Path) -> None:
        """Raises:
        StateError: it cannot be written.
        ConfigError: there are settings in it that cannot be read.
        """
        self.directory = directory
        self.settings = directory / SETTINGS
        try:
            self._recover()
            self._new().rmdir()  # this shows that it can be written
        except OSError as error:
            raise _unwritable(directory, error) from None
        self._read()

    def check(self, fleet: str, name: str) -> None:
        """Raises ConfigError: the existing identity is of another device or another fleet."""
        current = self._read()
        for key, value in (("fleet", fleet), ("id", name)):
            if current.get(key, value) != value:
                raise ConfigError(
                    f"{self.settings} is of {key} {current[key]!r}, and the invitation for {value!r}: take "
                    "another --directory, or --force, if the old identity is to be lost"
                )

    def lacks(self, key: str) -> bool:
        """Whether the settings have no `key`."""
        return key not in self._read()

    def write(self, joined: Joined, more: dict[str, str]) -> None:
        """Writes everything durably; other settings stay. A failure leaves the old identity as it was.

        All files are written into one new folder, whose exchange for the old one decides. After a power cut
        the next `IdentityFiles` has the old identity, or brings the files of the new one to their places.

        Args:
            more: further settings, by their keys.

        Raises:
            StateError: it cannot be written.
        """
        own = {
            "id": joined.name,
            "fleet": joined.fleet,
            "broker": joined.broker,
            "ca": f"{IDENTITY}/ca.crt",
            "cert": f"{IDENTITY}/client.crt",
            "key": f"{IDENTITY}/client.key",
        }
        pinned = {"release": joined.release_key, "software": joined.software_key}
        own |= {f"{what}-key": f"{what}.pub" for what, key in pinned.items() if key}
        text = self._merged(own | more)
        try:
            new = self._new()
            for name, data in (
                ("ca.crt", joined.authority),
                ("client.crt", joined.certificate),
                ("client.key", joined.key),
            ):
                write_atomically(new / name, data, mode=0o600)
            for what, key in pinned.items():
                if key:
                    write_atomically(new / f"{what}.pub", key, mode=0o644)
            write_atomically(new / SETTINGS, text, mode=0o644)
            self._swap()
        except OSError as error:
            raise unwritable(self.directory, error) from None

    def _new(self) -> Path:
        new = self.directory / NEW
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        return new

    def _swap(self) -> None:
        current, old = self.directory / IDENTITY, self.directory / OLD
        if current.exists():
            current.rename(old)
        (self.directory / NEW).rename(current)
        sync_folder(self.directory)
        self._move_beside()
        shutil.rmtree(old, ignore_errors=True)

    def _move_beside(self) -> None:
        """Moves the files that the identity's folder does not keep to their places."""
        for name in BESIDE:
            with suppress(FileNotFoundError):
                (self.directory / IDENTITY / name).replace(self.directory / name)
        sync_folder(self.directory)

    def _recover(self) -> None:
        """After a power cut: restores the old identity, or completes the new one if it has its folder."""
        current, old = self.directory / IDENTITY, self.directory / OLD
        if not current.exists():
            with suppress(FileNotFoundError):
                old.rename(current)
        self._move_beside()
        shutil.rmtree(old, ignore_errors=True)

    def _read(self) -> dict[str, Any]:
        try:
            return tomllib.loads(self.settings.read_text())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise ConfigError(f"{self.settings}: expected a device's settings ({error})") from None

    def _merged(self, values: dict[str, str]) -> bytes:
        """The settings, with `values` first, and without earlier lines for the same keys."""
        before = self.settings.read_text().splitlines() if self.settings.exists() else []
        keys = "|".join({*OWN_KEYS, *values})
        kept = [line for line in before if not re.match(rf"\s*({keys})\s*=", line)]
        lines = [f"{key} = {_quoted(value)}" for key, value in values.items()]
        text = "\n".join([*lines, *kept]) + "\n"
        try:
            tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{self.settings}: expected one key a line, without quotes ({error})") from None
        return text.encode()


def _unwritable(directory: Path, error: OSError) -> StateError:
    return StateError(
        f"cannot write {directory}: {error.strerror}; run it by sudo, or take another --directory"
    )


def _quoted(text: str) -> str:
    """A TOML basic string; JSON strings have the same form."""
    return json.dumps(text, ensure_ascii=False)
