# SPDX-License-Identifier: Apache-2.0
"""The software of a device on disk: environments, and links that say which of them runs.

Each `VERSION-DIGEST/` is a virtual environment; `base` links to the one that the device was installed with.
These links name one of them:

- `current`: in service; none: base.
- `previous`: in service before it; none: base.
- `trial`: to be tried as soon as the launcher sees it.
- `tried`: under trial. If it is found when the launcher starts, it did not come up.

A link is replaced by a rename, so that readers see one environment or the other. `failed.json` says why the
last one under trial did not come up, `broker` where the last healthy process found its broker. Launcher and
environments may be of different releases: these names and their meaning stay. This module needs no package.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

BASE, CURRENT, PREVIOUS, TRIAL, TRIED = "base", "current", "previous", "trial", "tried"
FAILED, BROKER, RELEASE, LOCK = "failed.json", "broker", "release", ".lock"
FOREIGN = "PYTHONPATH", "PYTHONHOME"  # variables that make Python load packages from outside an environment
VARIABLE = "SPLITEE_SOFTWARE"  # the folder
LAUNCHER = "SPLITEE_LAUNCHER"  # process number of the launcher, in the environment of what it starts
RUNS = "SPLITEE_RUNS"  # name of the environment, likewise

_NAME = re.compile(r"[0-9][0-9A-Za-z.]{0,60}-[0-9a-f]{12}")
_DIGEST = re.compile("[0-9a-f]{64}")
_LONGEST_FILE = 4096  # bytes
LONGEST_REASON = 500  # characters


class Software:
    """The software folder of one device."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def of_this_process(cls) -> Software | None:
        """The folder whose launcher started this process; None: it was started otherwise."""
        path = os.environ.get(VARIABLE, "")
        is_launched = os.environ.get(LAUNCHER) == str(os.getppid())
        return cls(Path(path)) if path and is_launched else None

    @property
    def in_service(self) -> str:
        """The name of the environment in service; base if the chosen one is missing."""
        name = self.target(CURRENT)
        return name if name is not None and self.is_there(name) else BASE

    @property
    def before(self) -> str | None:
        """The name of the environment that was in service before, else base; None: there is no other."""
        now = self.in_service
        for name in (self.target(PREVIOUS), BASE):
            if name not in (None, now) and self.is_there(name):
                return name
        return None

    def is_there(self, name: str) -> bool:
        """Whether the environment has a Python that can be started."""
        return os.access(self.python(name), os.X_OK)

    def python(self, name: str) -> Path:
        return self.path / name / "bin" / "python"

    def target(self, link: str) -> str | None:
        """The name that a link points to; None: there is no link, or it points to no environment."""
        try:
            name = (self.path / link).readlink().name
        except OSError:
            return None
        return name if name == BASE or _NAME.fullmatch(name) else None

    def point(self, link: str, name: str | Path) -> None:
        """Sets a link, durably. Raises OSError."""
        temporary = self.path / f".{link}.new"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(name, target_is_directory=True)
        temporary.replace(self.path / link)
        self._sync()

    def move(self, link: str, to: str) -> None:
        """Renames a link, durably. Raises OSError."""
        (self.path / link).replace(self.path / to)
        self._sync()

    def drop(self, link: str) -> None:
        """Removes a link, durably. Raises OSError."""
        (self.path / link).unlink(missing_ok=True)
        self._sync()

    def install_base(self, path: Path) -> None:
        """`path` is what the device was installed with. Raises OSError."""
        if not (self.path / BASE).is_symlink() or (self.path / BASE).readlink() != path:
            self.point(BASE, path)

    def accept_trial(self) -> None:
        """Puts the software under trial into service, durably. Raises OSError."""
        self.point(PREVIOUS, self.in_service)
        self.move(TRIED, CURRENT)

    def reject_trial(self, name: str, reason: str) -> None:
        """Ends the trial of software that did not come up, durably. Raises OSError."""
        with suppress(OSError):  # on a full disk only the reason is lost
            self._write(FAILED, json.dumps({"name": name, "reason": reason[:LONGEST_REASON]}))
        self.drop(TRIED)

    def failure(self) -> tuple[str, str] | None:
        """Name and reason of the last one that did not come up."""
        try:
            found = json.loads(self._read(FAILED))
            return str(found["name"]), str(found["reason"])
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return None

    def note_release(self, name: str, release: str) -> None:
        """`release`: SHA-256 of the file that the environment `name` was made of. Raises OSError."""
        self._write(f"{name}/{RELEASE}", release)

    def release(self) -> str | None:
        """SHA-256 of the file that the software in service was made of; None: that is the base."""
        with suppress(OSError):
            digest = self._read(f"{self.in_service}/{RELEASE}")
            return digest if _DIGEST.fullmatch(digest) else None
        return None

    def note_broker(self, host: str, port: int) -> None:
        """Records where this healthy process found its broker. Raises OSError."""
        if self.broker() != (host, port):
            self._write(BROKER, f"{host} {port}")

    def broker(self) -> tuple[str, int] | None:
        """Host and port; None: no process was healthy yet."""
        try:
            host, port = self._read(BROKER).split()
            return host, int(port)
        except (OSError, ValueError):
            return None

    def prune(self) -> None:
        """Removes the environments that no link names, such as those of unfinished work."""
        kept = {self.target(link) for link in (CURRENT, PREVIOUS, TRIAL, TRIED)}
        with suppress(OSError):
            for entry in self.path.iterdir():
                if _NAME.fullmatch(entry.name) and entry.name not in kept:
                    shutil.rmtree(entry, ignore_errors=True)

    def prune_if_idle(self) -> None:
        """The same, unless a process is installing something, which no link names yet."""
        with suppress(OSError):
            lock = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self.prune()
            finally:
                os.close(lock)

    def _read(self, name: str) -> str:
        with (self.path / name).open(encoding="utf-8") as file:
            return file.read(_LONGEST_FILE)

    def _write(self, name: str, text: str) -> None:
        path = self.path / name
        temporary = path.with_name(f".{path.name}.new")
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        self._sync(path.parent)

    def _sync(self, path: Path | None = None) -> None:
        """Makes the names in a folder durable. `path`: None: of this one."""
        folder = os.open(path or self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
