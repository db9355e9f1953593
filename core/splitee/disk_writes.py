# SPDX-License-Identifier: Apache-2.0
"""What a process writes to its disk, by which an SD card wears."""

from __future__ import annotations

import psutil


def bytes_written() -> int | None:
    """Bytes that this process has caused to be written to a disk; None: the system does not say.

    Counted are pages that it has made dirty, of files on disks (`write_bytes` of proc(5)): not what goes to
    a network or to memory, and not what the card's own housekeeping adds.
    """
    try:
        return int(psutil.Process().io_counters().write_bytes)
    except (psutil.Error, AttributeError, OSError):
        return None
