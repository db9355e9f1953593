# SPDX-License-Identifier: Apache-2.0
"""A folder that is watched for images."""

from __future__ import annotations

import logging
import stat
from pathlib import Path

from splitee.errors import DataError
from splitee.samples.images import IMAGE_SUFFIXES

log = logging.getLogger(__name__)


class Folder:
    """The images that come into a folder.

    A file is taken when its size has stayed the same between two looks: it may still be being written. What
    bears an image's name and is no regular file is never opened. A folder that disappears, as a drive that is
    taken out, is waited for; what it held before is not new.

    Attributes:
        skipped: those that are there and are no regular files.
    """

    def __init__(self, path: Path, *, existing: bool = False) -> None:
        """`existing`: images that are there at the start are new, too.

        Raises DataError: there is no such folder.
        """
        if not path.is_dir():
            raise DataError(f"--watch {path}: there is no such folder")
        self._path = path
        self.skipped: set[Path] = set()
        self._is_away = False
        self._done = set() if existing else set(self._sizes() or ())
        self._sizes_before: dict[Path, int] = {}

    def new(self) -> list[tuple[str, Path | bytes]]:
        """The images whose files are whole since the last call; none while the folder is away."""
        sizes = self._sizes()
        if sizes is None:
            return []
        self._done &= sizes.keys()  # what is gone may come again under its name
        fresh = {path: size for path, size in sizes.items() if path not in self._done and size}
        ready = sorted(path for path, size in fresh.items() if self._sizes_before.get(path) == size)
        self._sizes_before = fresh
        self._done.update(ready)
        return [(path.name, path) for path in ready]

    def _sizes(self) -> dict[Path, int] | None:
        """Bytes of the images in the folder; None: it cannot be read."""
        try:
            paths = list(self._path.iterdir())
        except OSError as error:
            if not self._is_away:
                log.warning("--watch %s: %s; waiting for it to come back", self._path, error.strerror)
            self._is_away = True
            return None
        if self._is_away:
            log.info("--watch %s is back", self._path)
        self._is_away = False
        found, others = {}, set()
        for path in paths:
            if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("."):
                try:
                    status = path.stat()
                except OSError:  # it is gone again
                    continue
                if stat.S_ISREG(status.st_mode):
                    found[path] = status.st_size
                else:
                    others.add(path)
        for path in sorted(others - self.skipped):
            log.warning("skipped: %s: expected an image, got no regular file", path.name)
        self.skipped = others
        return found
