# SPDX-License-Identifier: Apache-2.0
"""Settings of the C library's memory allocator for training."""

from __future__ import annotations

import ctypes
from contextlib import suppress

# Parameters of glibc's mallopt(3), and what they are set to, in bytes.
_TRIM_THRESHOLD, _KEPT = -1, 128 << 20
_MMAP_THRESHOLD, _LARGEST = -3, 32 << 20  # the largest that glibc takes


def keep_freed_memory() -> None:
    """Have malloc keep up to 128 MiB of freed memory for the next batch.

    By default glibc returns the memory of a batch's tensors to the system when they are freed, or not, by
    chance of where they lie, and each page that the next batch touches is then a page fault: up to 5 % of the
    CPU time of training. Other C libraries have no `mallopt`, and are left as they are.
    """
    with suppress(AttributeError, OSError, TypeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_TRIM_THRESHOLD, _KEPT)
        libc.mallopt(_MMAP_THRESHOLD, _LARGEST)
