# SPDX-License-Identifier: Apache-2.0
"""A process's own memory: the peak of its allocations, without pages of files, and its mapped memory."""

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

    `status`: the file of another process, to read its memory.
    """
    fields = ("VmHWM", "VmRSS", "RssAnon", "RssFile")
    lines = (line.split(":") for line in status.read_text().splitlines())
    return {name: 1024 * int(value.split()[0]) for name, value in lines if name in fields}


def peak(status: Path = STATUS) -> int:
    """Peak of anonymous memory in bytes, as far as the kernel's own peak value shows it.

    Raises KeyError: the process of `status` has ended.
    """
    now = memory(status)
    return max(now["RssAnon"], now["VmHWM"] - now["RssFile"])


def address_space() -> int:
    """Bytes that this process has mapped, used or not."""
    return _pages(0)


def resident(statm: Path = STATM) -> int | None:
    """Bytes of memory that this process uses; None if the system does not tell."""
    try:
        return _pages(1, statm)
    except (OSError, ValueError, IndexError):
        return None


def _pages(field: int, statm: Path = STATM) -> int:
    return int(statm.read_text().split()[field]) * os.sysconf("SC_PAGE_SIZE")


class MemoryWatch:
    """Samples the memory often while it is entered, and knows the peak afterwards.

    The kernel's own peak value counts pages of files too, and has been seen to miss short peaks. Sampling
    may miss them as well. The larger of both is taken as the peak.
    """

    def __init__(self) -> None:
        self._seen = memory()["RssAnon"]
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> MemoryWatch:
        self._stop.clear()
        self._thread = threading.Thread(target=self._sample, daemon=True)
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

    def _sample(self) -> None:
        while not self._stop.wait(EVERY):
            self._seen = max(self._seen, memory()["RssAnon"])
