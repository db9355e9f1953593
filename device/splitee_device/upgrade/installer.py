# SPDX-License-Identifier: Apache-2.0
"""Installs software that the fleet has signed, and has the launcher try it."""

from __future__ import annotations

import fcntl
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from splitee import __version__
from splitee.errors import SoftwareError, StateError
from splitee.inference.signatures import ReleaseKey
from splitee.software.versions import is_newer
from splitee.software.wheelhouse import Wheelhouse
from splitee_device.upgrade.environment import STEP_TIMEOUT, make_environment
from splitee_device.upgrade.software import BASE, LOCK, TRIAL, TRIED, Software

SHOWN_DIGEST = 12  # characters of the manifest's digest in an environment's name

log = logging.getLogger(__name__)


class SoftwareInstaller:
    """Installs the software of one device, at its owner's command or from the fleet's releases."""

    def __init__(self, software: Software) -> None:
        self.software = software

    def install(
        self,
        file: BinaryIO,
        key: ReleaseKey,
        *,
        allow_downgrade: bool = False,
        version: str | None = None,
        before_trial: Callable[[str], None] = lambda name: None,
    ) -> str:
        """Installs the software in `file` beside what runs; the launcher tries it next. Returns its version.

        Args:
            version: that the file must have; None: any.
            before_trial: called with the name of the environment when it is complete, before the launcher can
                see it. If it raises, the installation ends.

        Raises:
            SoftwareError: it is damaged, not signed by `key`, for another machine or Python, not newer than
                what is in service, or does not start.
            StateError: it cannot be written, or another process is installing software.
        """
        try:
            wheelhouse = Wheelhouse.read(file, key)
            release = wheelhouse.file_digest()
        except OSError as error:
            raise SoftwareError(f"the software cannot be read: {error.strerror}") from None
        manifest = wheelhouse.manifest
        manifest.check_machine(platform.machine(), f"cp3{sys.version_info.minor}")
        if version not in (None, manifest.version):
            raise SoftwareError(f"the file has splitee {manifest.version}, the release says {version}")
        name = f"{manifest.version}-{wheelhouse.digest[:SHOWN_DIGEST]}"
        with self._locked():
            self._check_newer(manifest.version, name, allow_downgrade)
            self.software.prune()
            if name not in (self.software.target(TRIAL), self.software.before):
                log.info("installing splitee %s", manifest.version)
                make_environment(self.software, name, wheelhouse)
            self._write(lambda: self.software.note_release(name, release))
            before_trial(name)
            self._write(lambda: self.software.point(TRIAL, name))
        return manifest.version

    def _check_newer(self, version: str, name: str, allow_downgrade: bool) -> None:
        installed = self.installed()
        if name == self.software.in_service:
            raise SoftwareError(f"splitee {version} is already in service")
        if not allow_downgrade and not is_newer(version, installed):
            raise SoftwareError(
                f"splitee {version} is not newer than {installed}, which is in service "
                "(--allow-downgrade installs it all the same)"
            )

    def roll_back(self) -> str:
        """Has the launcher try what was in service before; returns its version.

        Raises SoftwareError: there is none; StateError: the link cannot be written.
        """
        before = self.software.before
        if before is None:
            raise SoftwareError(f"{self.software.path} keeps no software from before that in service")
        self.try_next(before)
        return self.version_of(before)

    def try_next(self, name: str) -> None:
        """Has the launcher try the environment `name`. Raises StateError: the link cannot be written."""
        with self._locked():
            self._write(lambda: self.software.point(TRIAL, name))

    def installed(self) -> str:
        """The version in service."""
        return self.version_of(self.software.in_service)

    def version_of(self, name: str) -> str:
        """The version of an environment. Raises SoftwareError: it does not start."""
        if name != BASE:
            return name.rpartition("-")[0]
        base = self.software.path / BASE
        if not self.software.is_there(BASE) or base.resolve() == Path(sys.prefix).resolve():
            return __version__  # the launcher has never run, or this process runs from there
        command = [str(self.software.python(BASE)), "-P", "-m", "splitee", "--version"]
        with suppress(OSError, subprocess.SubprocessError, IndexError):
            done = subprocess.run(command, capture_output=True, text=True, timeout=STEP_TIMEOUT, check=True)
            return done.stdout.split()[-1]  # of "splitee, version 0.1.0"
        raise SoftwareError(f"what this device was installed with does not start: {command[0]}")

    def _write(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            raise _unwritable(self.software.path, error) from None

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Raises StateError: another process is installing software, or the launcher is trying some."""
        try:
            lock = os.open(self.software.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise _unwritable(self.software.path, error) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if (tried := self.software.target(TRIED)) is not None:
                raise StateError(f"{tried} is being tried: wait until it has come up, or has not")
            if not self.software.is_there(BASE):  # the launcher has never run
                self.software.install_base(Path(sys.prefix))
            yield
        except BlockingIOError:
            raise StateError(f"{self.software.path}: another process installs software now") from None
        finally:
            os.close(lock)


def _unwritable(path: Path, error: OSError) -> StateError:
    return StateError(f"software folder {path}: {error.strerror}; choose another --software, or free space")
