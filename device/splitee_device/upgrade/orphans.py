# SPDX-License-Identifier: Apache-2.0
"""What a process has started and left behind when it ended: adopted by the launcher, and ended by it."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36  # prctl(2)
PATIENCE = 5.0  # seconds that killed processes have to end


def adopt_orphans() -> None:
    """From now on the orphans among this process's descendants become its children."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_orphans() -> None:
    """Ends all children of this process, and theirs, which become its children by that."""
    due = time.monotonic() + PATIENCE
    with suppress(ChildProcessError):  # there are none
        while time.monotonic() < due:
            for process in _children():
                os.kill(process, signal.SIGKILL)
            if os.waitpid(-1, os.WNOHANG) == (0, 0):
                time.sleep(0.01)


def _children() -> list[int]:
    mine = str(os.getpid())
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, IndexError):  # it has just ended
            parent = status.read_text(errors="replace").rpartition(")")[2].split()[1]
            if parent == mine:
                found.append(int(status.parent.name))
    return found
