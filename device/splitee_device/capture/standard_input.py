# SPDX-License-Identifier: Apache-2.0
"""Images from another program's pipe: motion JPEG on standard input."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

from splitee.errors import DataError
from splitee_device.capture.backlog import NewImage
from splitee_device.capture.mjpeg import LARGEST, Splitter
from splitee_device.capture.pace import Pace
from splitee_device.capture.pipe import pieces

STANDARD_INPUT = 0  # its descriptor
EXPECTED = f"--stdin: expected motion JPEG with images of up to {LARGEST >> 20} MiB, got"

log = logging.getLogger(__name__)


class StandardInput:
    """The stream's images at `pace`, until it ends. Their names are their numbers."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._splitter = Splitter()
        self._number = 0
        self._is_said = False

    def images(self, stop: threading.Event) -> Iterator[NewImage]:
        """Yields until the end, or until `stop` is set. Raises DataError: it ended without any image."""
        for file, piece in pieces((STANDARD_INPUT,), stop):
            for image in self._splitter.feed(piece):
                self._number += 1
                if self._pace.takes():
                    yield NewImage(f"{self._number}.jpg", image)
            if self._splitter.broken and not self._is_said:
                log.warning("%s something else, which is passed over", EXPECTED)
                self._is_said = True
            if file >= 0 and not piece and not self._number:
                raise DataError(f"{EXPECTED} none before its end")
