# SPDX-License-Identifier: Apache-2.0
"""The latest image, in a file on the device, for its owner's own display or programs."""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from pathlib import Path

from splitee.clock import Clock
from splitee.durable import UNFINISHED
from splitee.errors import ConfigError
from splitee.log_limits import FirstFew
from splitee.samples.images import UnreadableImage, read_encoded

EVERY = 1.0  # least seconds between two writes

log = logging.getLogger(__name__)


class LatestImage:
    """Keeps the newest image as it came; readers of the path always see one whole image.

    It is sent nowhere. It is not written durably, to spare an SD card.
    """

    def __init__(self, path: Path, *, clock: Clock = time.monotonic) -> None:
        """Raises ConfigError: there is no such folder."""
        if not path.parent.is_dir() or path.is_dir():
            raise ConfigError(f"--keep-latest {path}: expected a file in a folder that exists")
        self._path = path
        self._clock = clock
        self._next: Path | bytes | None = None
        self._written_at = clock() - EVERY
        self._log_failed = FirstFew()

    def offer(self, source: Path | bytes) -> None:
        """Takes a new image: its file, or encoded bytes."""
        self._next = source
        self.tick()

    def tick(self) -> None:
        """Writes what is due."""
        if self._next is None or self._clock() - self._written_at < EVERY:
            return
        source, self._next, self._written_at = self._next, None, self._clock()
        try:
            self._write(read_encoded(source))
        except UnreadableImage as error:
            self._note_failure(str(error))
        except OSError as error:
            self._note_failure(error.strerror or str(error))

    def _write(self, data: bytes) -> None:
        """Raises OSError: the previous image is still there, and nothing of this one."""
        temporary = self._path.with_name(f".{self._path.name}{UNFINISHED}")
        temporary.unlink(missing_ok=True)
        try:
            with temporary.open("xb") as file:  # never through a link that somebody else created
                file.write(data)
            temporary.replace(self._path)
        except OSError:
            with suppress(OSError):
                temporary.unlink()
            raise

    def _note_failure(self, reason: str) -> None:
        if self._log_failed.due():
            log.warning("the latest image was not kept at %s: %s", self._path, reason)
