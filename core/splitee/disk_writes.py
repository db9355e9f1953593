# SPDX-License-Identifier: Apache-2.0
"""The bytes that a process writes to its disk, which wear out an SD card."""

from __future__ import annotations

import psutil


def bytes_written() -> int | None:
    """Bytes that this process has caused to be written to a disk; None: the system does not say.

    It counts the dirty pages of files on disks (`write_bytes` of proc(5)), but not what goes to
    a network or to memory, nor what the card's own housekeeping adds.
    """
    try:
        return int(psutil.Process().io_counters().write_bytes)
    except (psutil.Error, AttributeError, OSError):
        return None
