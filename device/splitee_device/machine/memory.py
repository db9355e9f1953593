# SPDX-License-Identifier: Apache-2.0
"""A process's own memory: the peak of what it has allocated, without the pages of files; what it maps."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import TracebackType

STATUS = Path("/proc/self/status")
STATM = Path("/proc/self/statm")
EVERY = 0.002  # seconds


def memory(status: Path = STATUS) -> dict[str, int]:
    """Bytes of this process: anonymous (RssAnon), of files (RssFile), all (VmRSS) and their peak (VmHWM).

    `status`: of another process, where it is of that.
    """
    fields = ("VmHWM", "VmRSS", "RssAnon", "RssFile")
    lines = (line.split(":") for line in status.read_text().splitlines())
    return {name: 1024 * int(value.split()[0]) for name, value in lines if name in fields}


def peak(status: Path = STATUS) -> int:
    """Bytes of anonymous memory at its peak, as far as the kernel's own mark shows it.

    Raises KeyError: the process of `status` has ended, and is about to go.
    """
    now = memory(status)
    return max(now["RssAnon"], now["VmHWM"] - now["RssFile"])


def address_space() -> int:
    """Bytes that this process has mapped, used or not."""
    return _pages(0)


def resident(statm: Path = STATM) -> int | None:
    """Bytes of memory that this process takes; None where the system does not say."""
    try:
        return _pages(1, statm)
    except (OSError, ValueError, IndexError):
        return None


def _pages(field: int, statm: Path = STATM) -> int:
    return int(statm.read_text().split()[field]) * os.sysconf("SC_PAGE_SIZE")


class MemoryWatch:
    """Looks often while it is entered, and knows the peak afterwards.

    The kernel's own mark counts pages of files too, and has been seen to miss peaks of short life; looking
    may miss them as well. The larger of both is the peak.
    """

    def __init__(self) -> None:
        self._seen = memory()["RssAnon"]
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> MemoryWatch:
        self._stop.clear()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    @property
    def peak(self) -> int:
        """Bytes of anonymous memory at its peak in this process's life."""
        return max(self._seen, peak())

    def _look(self) -> None:
        while not self._stop.wait(EVERY):
            self._seen = max(self._seen, memory()["RssAnon"])
