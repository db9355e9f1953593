# SPDX-License-Identifier: Apache-2.0
"""Keeps measurements in the device's state directory, as long as nothing relevant changes."""

from __future__ import annotations

import hashlib
import logging
from importlib.metadata import version
from pathlib import Path

import msgspec

from splitee.cli.run_flags import all_settings
from splitee.durable import write_atomically
from splitee.errors import MalformedMessage, StateError
from splitee.protocol.run_spec import RunSpec
from splitee_device.machine import hardware
from splitee_device.profiler.costs import Measured

FOLDER = "profile"

log = logging.getLogger(__name__)


class MeasuredStore:
    """Measurements in DIR/profile, identified by what they depend on: network, batch, machine."""

    def __init__(self, state: Path) -> None:
        self._folder = state / FOLDER

    def save(self, measured: Measured) -> None:
        """Save a measurement. If a cut failed in it, it is not kept: memory that was short may be free later.

        Raises:
            StateError: the directory cannot be written.
        """
        if measured.failed:
            return
        path = self._path(measured.spec, measured.threads)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StateError(f"state directory {path.parent}: {error.strerror}; choose another") from None
        write_atomically(path, measured.encode())

    def load(self, spec: RunSpec, threads: int) -> Measured | None:
        """The measurement for this run on this machine, if any, with the memory that is available now."""
        path = self._path(spec, threads)
        try:
            measured = Measured.decode(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, MalformedMessage) as error:
            log.warning("%s is unreadable (%s): measuring again", path, error)
            return None
        return msgspec.structs.replace(measured, available=hardware.memory_for_training())

    def _path(self, spec: RunSpec, threads: int) -> Path:
        costs = (getattr(spec, name) for name, setting in all_settings().items() if setting.costs)
        parts = (*costs, spec.frozen, threads, hardware.identity(), version("torch"))
        return self._folder / f"{hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}.json"
