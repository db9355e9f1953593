# SPDX-License-Identifier: Apache-2.0
"""Reads from pipes so that a stop is noticed: no read waits longer than a moment."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Iterator

PIECE = 1 << 18  # bytes read at once
POLL_EVERY = 0.2  # seconds


def pieces(files: tuple[int, ...], stop: threading.Event) -> Iterator[tuple[int, bytes]]:
    """Yields what comes from each of `files`; (file, b"") at its end; (-1, b"") after POLL_EVERY of nothing.

    Ends when all files have ended, or `stop` is set.
    """
    poll, left = select.poll(), set(files)
    for file in files:
        poll.register(file, select.POLLIN)
    while left and not stop.is_set():
        ready = poll.poll(1000 * POLL_EVERY)
        if not ready:
            yield -1, b""
        for file, _ in ready:
            try:
                piece = os.read(file, PIECE)
            except OSError:  # of a terminal that is gone, or a descriptor that is not open
                piece = b""
            if not piece:
                poll.unregister(file)
                left.remove(file)
            yield file, piece
