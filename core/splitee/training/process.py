# SPDX-License-Identifier: Apache-2.0
"""Settings of a process that trains."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress

import torch

# Parameters of glibc's mallopt(3), and what they are set to, in bytes.
_TRIM_THRESHOLD, _MOST_KEPT, _SHARE_KEPT = -1, 128 << 20, 16
_MMAP_THRESHOLD, _LARGEST = -3, 32 << 20  # the largest that glibc takes


def prepare_to_train(threads: int | None) -> None:
    """Set torch's threads, and have malloc keep freed memory for the next batch.

    By default glibc returns the memory of a batch's tensors to the system when they are freed, or not, by
    chance of where they lie, and each page that the next batch touches is then a page fault: up to 5 % of the
    CPU time of training. With these settings it keeps up to 128 MiB, and at most a sixteenth of the machine's
    memory. Other C libraries have no `mallopt`, and are left as they are.

    Args:
        threads: of torch's operations; None: as many as torch chooses.
    """
    if threads:
        torch.set_num_threads(threads)
    kept = min(_MOST_KEPT, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // _SHARE_KEPT)
    with suppress(AttributeError, OSError, TypeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_TRIM_THRESHOLD, kept)
        libc.mallopt(_MMAP_THRESHOLD, _LARGEST)
