# SPDX-License-Identifier: Apache-2.0
"""The images that nobody has labelled yet, in their folders."""

from __future__ import annotations

import hashlib
import logging
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from splitee.errors import DataError
from splitee.log_limits import FirstFew
from splitee_device.data.folder import is_foreign, is_image_name

MOST_IMAGES = 10_000  # shown at most: the first by name

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Unlabelled:
    """One image file.

    Attributes:
        identifier: changes whenever the file is replaced or written to.
    """

    identifier: str
    path: Path

    @property
    def name(self) -> str:
        return self.path.name


class UnlabelledFolders:
    """The images in these folders and their subfolders, except hidden ones; links are not followed."""

    def __init__(self, folders: Sequence[Path]) -> None:
        """Raises DataError: one of them is not a folder."""
        for folder in folders:
            if not folder.is_dir():
                raise DataError(f"{folder}: there is no such folder")
        self._folders = tuple(folder.resolve() for folder in folders)
        self._log_most = FirstFew(3600.0)

    def scan(self) -> dict[str, Unlabelled]:
        """The images that are there now, by their identifiers."""
        found: dict[str, Unlabelled] = {}
        for folder in self._folders:
            for path, folders, names in os.walk(folder):
                folders[:] = sorted(name for name in folders if not is_foreign(name))
                for name in sorted(filter(_is_shown, names)):
                    image = image_at(Path(path, name))
                    if image is not None:
                        found[image.identifier] = image
                    if len(found) >= MOST_IMAGES:
                        if self._log_most.due():
                            log.warning("only the first %d unlabelled images are shown", MOST_IMAGES)
                        return found
        return found


def image_at(path: Path) -> Unlabelled | None:
    """The image that is now at `path`; None: no regular file is there."""
    try:
        status = path.lstat()
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    state = f"{os.fspath(path)}\0{status.st_size}\0{status.st_mtime_ns}"
    digest = hashlib.sha256(state.encode(errors="surrogateescape")).hexdigest()
    return Unlabelled(digest[:24], path)


def _is_shown(name: str) -> bool:
    return not name.startswith(".") and is_image_name(name)
