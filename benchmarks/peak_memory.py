# SPDX-License-Identifier: Apache-2.0
"""The peak memory of other processes, as recorded by Linux."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

Bytes = dict[str, int]  # by process


class PeakMemory:
    """Peaks of the resident memory of processes (proc(5): VmHWM)."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._pids = pids
        self._peaks: Bytes = {}

    def sample(self) -> None:
        """Record the peaks so far, for processes that end before the next call of `peaks`."""
        for name, pid in self._pids.items():
            with suppress(OSError):
                match = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
                if match:
                    self._peaks[name] = int(match[1]) << 10

    def peaks(self) -> Bytes:
        """The peak of each process since the last call, or since its start."""
        self.sample()
        for pid in self._pids.values():
            with suppress(OSError):
                Path(f"/proc/{pid}/clear_refs").write_text("5")
        peaks, self._peaks = self._peaks, {}
        return peaks


def megabytes(sizes: Bytes) -> dict[str, float]:
    """`sizes` in units of 2^20 bytes."""
    return {name: round(size / (1 << 20), 1) for name, size in sizes.items()}
