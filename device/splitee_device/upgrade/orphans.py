# SPDX-License-Identifier: Apache-2.0
"""Processes that an ended process has left behind: the launcher adopts and ends them."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36  # prctl(2)
PATIENCE = 5.0  # seconds that killed processes have to end


class Orphans:
    """From now on, orphans among this process's descendants become its children.

    Existing children are spared: a script may have started them before it became this process.
    """

    def __init__(self) -> None:
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._spared = _children()

    def end(self) -> None:
        """Ends the orphans, and those that they leave behind in turn."""
        due = time.monotonic() + PATIENCE
        while (left := _children() - self._spared) and time.monotonic() < due:
            for process in left:
                os.kill(process, signal.SIGKILL)
            with suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG) != (0, 0):
                    pass
            time.sleep(0.01)


def _children() -> set[int]:
    mine = str(os.getpid())
    found = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, IndexError):  # it has just ended
            parent = status.read_text(errors="replace").rpartition(")")[2].split()[1]
            if parent == mine:
                found.add(int(status.parent.name))
    return found
