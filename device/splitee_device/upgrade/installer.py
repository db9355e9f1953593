# SPDX-License-Identifier: Apache-2.0
"""Takes software that the fleet has signed, and has the launcher try it."""

from __future__ import annotations

import fcntl
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from splitee import __version__
from splitee.errors import SoftwareError, StateError
from splitee.inference.signatures import ReleaseKey
from splitee.software.versions import is_newer
from splitee.software.wheelhouse import Wheelhouse
from splitee_device.upgrade.environment import make_environment
from splitee_device.upgrade.software import BASE, TRIAL, TRIED, Software

SHOWN_DIGEST = 12  # characters of the manifest's digest in an environment's name
LOCK = ".lock"

log = logging.getLogger(__name__)


class SoftwareInstaller:
    """The software of one device, by its owner's hand or by the fleet's releases."""

    def __init__(self, software: Software) -> None:
        self.software = software

    def install(self, file: BinaryIO, key: ReleaseKey, *, allow_downgrade: bool = False) -> str:
        """Installs what `file` has beside what runs; the launcher tries it next. Returns its version.

        Raises:
            SoftwareError: it is damaged, not signed by `key`, for another machine or Python, not newer than
                what is in service, or does not start.
            StateError: it cannot be written, or another process installs something.
        """
        wheelhouse = Wheelhouse.read(file, key)
        manifest = wheelhouse.manifest
        manifest.check_machine(platform.machine(), f"cp3{sys.version_info.minor}")
        name = f"{manifest.version}-{wheelhouse.digest[:SHOWN_DIGEST]}"
        with self._alone():
            installed = self.installed()
            if name == self.software.in_service:
                raise SoftwareError(f"splitee {manifest.version} is in service already")
            if not allow_downgrade and not is_newer(manifest.version, installed):
                raise SoftwareError(
                    f"splitee {manifest.version} is not newer than {installed}, which is in service "
                    "(--allow-downgrade takes it by hand)"
                )
            self.software.prune()
            if name not in (self.software.target(TRIAL), self.software.before):
                log.info("installing splitee %s", manifest.version)
                make_environment(self.software, name, wheelhouse)
            self._try_next(name)
        return manifest.version

    def roll_back(self) -> str:
        """Has the launcher try what was in service before; returns its version.

        Raises SoftwareError: there is nothing; StateError: the link cannot be written.
        """
        with self._alone():
            before = self.software.before
            if before is None:
                raise SoftwareError(f"{self.software.path} keeps no software from before that in service")
            self._try_next(before)
        return self.version_of(before)

    def installed(self) -> str:
        """The version in service."""
        return self.version_of(self.software.in_service)

    def version_of(self, name: str) -> str:
        """The version of an environment."""
        if name != BASE:
            return name.rpartition("-")[0]
        if not self.software.is_there(BASE):
            return __version__  # it was never started: this is what the device was installed with
        done = subprocess.run(
            [self.software.python(BASE), "-c", "import splitee; print(splitee.__version__)"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.stdout.strip()

    def _try_next(self, name: str) -> None:
        try:
            self.software.point(TRIAL, name)
        except OSError as error:
            raise _unwritable(self.software.path, error) from None

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Raises StateError: another process installs something, or the launcher tries it."""
        try:
            lock = os.open(self.software.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise _unwritable(self.software.path, error) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if (tried := self.software.target(TRIED)) is not None:
                raise StateError(f"{tried} is being tried: wait until it has come up, or has not")
            yield
        except BlockingIOError:
            raise StateError(f"{self.software.path}: another process installs software now") from None
        finally:
            os.close(lock)


def _unwritable(path: Path, error: OSError) -> StateError:
    return StateError(f"software folder {path}: {error.strerror}; choose another --software, or free space")
