# SPDX-License-Identifier: Apache-2.0
"""Images from another program's pipe: motion JPEG on standard input."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator

from splitee_device.capture.backlog import NewImage
from splitee_device.capture.mjpeg import LARGEST, Splitter
from splitee_device.capture.pace import Pace
from splitee_device.capture.pipe import pieces

log = logging.getLogger(__name__)


class StandardInput:
    """Its images, as `pace` has them, until it ends. They are called by their numbers."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._splitter = Splitter()
        self._number = 0

    def images(self, stop: threading.Event) -> Iterator[NewImage]:
        """Until it ends, or `stop` is set."""
        for _, piece in pieces((sys.stdin.fileno(),), stop):
            broken = self._splitter.broken
            for image in self._splitter.feed(piece):
                self._number += 1
                if self._pace.takes():
                    yield NewImage(f"{self._number}.jpg", image)
            if self._splitter.broken and not broken:
                log.warning(
                    "--stdin: expected motion JPEG with images of up to %d MiB, got something else as well, "
                    "which is passed over",
                    LARGEST >> 20,
                )
