# SPDX-License-Identifier: Apache-2.0
"""Encoded images in a temporary file, from which each can be read at once, in any order."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from splitee.errors import DataError


class SpilledImages:
    """Images that were read from a source in its order. The file has no name, and ends with the process."""

    def __init__(self, encoded: Iterable[tuple[int, bytes]], folder: Path | None) -> None:
        """`encoded`: (place, encoded image). `folder`: of the file; None: the system's own.

        Raises:
            DataError: there is no room for it.
        """
        self._where: dict[int, tuple[int, int]] = {}  # offset and size, by place
        try:
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  open as long as the images are
            end = 0
            for place, image in encoded:
                self._file.write(image)
                self._where[place] = end, len(image)
                end += len(image)
            self._file.flush()
        except OSError as error:
            raise DataError(
                f"no room to keep the encoded images in {folder or tempfile.gettempdir()}: {error.strerror}"
            ) from None

    def read(self, place: int) -> bytes:
        """The encoded image; several threads may read at once."""
        offset, size = self._where[place]
        return os.pread(self._file.fileno(), size, offset)
