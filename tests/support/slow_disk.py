# SPDX-License-Identifier: Apache-2.0
"""`splitee` on a disk that takes SLOW seconds for an fsync of a round's state."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

from splitee.cli.main import main

SLOW = 3  # seconds
LARGE = 10_000  # bytes: files above it are slow; a folder and the small files of a state are not


def main_on_a_slow_disk(environment: Mapping[str, str]) -> None:
    """`environment`: further variables."""
    fsync = os.fsync

    def slow_fsync(descriptor: int) -> None:
        if os.fstat(descriptor).st_size > LARGE:
            time.sleep(SLOW)
        fsync(descriptor)

    os.fsync = slow_fsync  # type: ignore[assignment]
    os.environ.update(environment)
    main()
