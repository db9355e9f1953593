# SPDX-License-Identifier: Apache-2.0
"""A device's identity on its disk, as install.sh lays out what it finds in a bundle.

`device.toml`, `release.pub` and `software.pub` are for all to read; certificate and key are in `device/`, for
the folder's owner alone.
"""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Any

from splitee.durable import sync_folder, unwritable, write_atomically
from splitee.errors import ConfigError, StateError
from splitee_device.joining.exchange import Joined

SETTINGS, IDENTITY = "device.toml", "device"
OWN_KEYS = ("id", "fleet", "broker", "ca", "cert", "key", "release-key", "software-key")
NEW, OLD = f".{IDENTITY}.new", f".{IDENTITY}.old"


class IdentityFiles:
    """One device's, below `directory`."""

    def __init__(self, directory: Path) -> None:
        """Makes the folder, if it must.

        Raises:
            StateError: it cannot be written.
            ConfigError: there are settings in it that cannot be read.
        """
        self.directory = directory
        self.settings = directory / SETTINGS
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o755)
            self._take_back()
            self._new().rmdir()  # so it can be written
        except OSError as error:
            raise StateError(
                f"cannot write {directory}: {error.strerror}; run it by sudo, or take another --directory"
            ) from None
        self._read()

    def check(self, fleet: str, name: str) -> None:
        """Raises ConfigError: what is there already is another device's, or another fleet's."""
        there = self._read()
        for key, value in (("fleet", fleet), ("id", name)):
            if there.get(key, value) != value:
                raise ConfigError(
                    f"{self.settings} is of {key} {there[key]!r}, and the invitation for {value!r}: take "
                    "another --directory, or --force, if the old identity is to be lost"
                )

    def lacks(self, key: str) -> bool:
        """Whether the settings say nothing of `key`."""
        return key not in self._read()

    def write(self, joined: Joined, more: dict[str, str]) -> None:
        """All of it, durably; what else the settings say stays. A failure leaves the identity that was there.

        Args:
            more: settings that come in besides, by their keys.

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
                    write_atomically(self.directory / f"{what}.pub", key, mode=0o644)
            self._exchange()
            write_atomically(self.settings, text, mode=0o644)
        except OSError as error:
            raise unwritable(self.directory, error) from None

    def _new(self) -> Path:
        new = self.directory / NEW
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        return new

    def _exchange(self) -> None:
        there, old = self.directory / IDENTITY, self.directory / OLD
        if there.exists():
            there.rename(old)
        (self.directory / NEW).rename(there)
        shutil.rmtree(old, ignore_errors=True)
        sync_folder(self.directory)

    def _take_back(self) -> None:
        """After a power cut between the two renames of an exchange."""
        there, old = self.directory / IDENTITY, self.directory / OLD
        if not there.exists():
            with suppress(FileNotFoundError):
                old.rename(there)
        shutil.rmtree(old, ignore_errors=True)

    def _read(self) -> dict[str, Any]:
        try:
            return tomllib.loads(self.settings.read_text())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise ConfigError(f"{self.settings}: expected a device's settings ({error})") from None

    def _merged(self, values: dict[str, str]) -> bytes:
        """The settings with `values` at their head, and without those that were there for the same keys."""
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


def _quoted(text: str) -> str:
    """A TOML basic string, which JSON's is."""
    return json.dumps(text, ensure_ascii=False)
