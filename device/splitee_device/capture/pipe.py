# SPDX-License-Identifier: Apache-2.0
"""What comes through a pipe while somebody may want to stop: no read waits longer than for a moment."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Iterator

PIECE = 1 << 18  # bytes read at once
MOMENT = 0.2  # seconds


def pieces(files: tuple[int, ...], stop: threading.Event) -> Iterator[tuple[int, bytes]]:
    """What comes from each of `files`; (file, b"") at its end; (-1, b"") after a MOMENT without anything.

    Ends when all files have, or `stop` is set.
    """
    poll, left = select.poll(), set(files)
    for file in files:
        poll.register(file, select.POLLIN)
    while left and not stop.is_set():
        ready = poll.poll(1000 * MOMENT)
        if not ready:
            yield -1, b""
        for file, _ in ready:
            try:
                piece = os.read(file, PIECE)
            except OSError:  # of a terminal that is gone, or a descriptor that nobody has opened
                piece = b""
            if not piece:
                poll.unregister(file)
                left.remove(file)
            yield file, piece
