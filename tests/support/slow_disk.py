# SPDX-License-Identifier: Apache-2.0
"""`splitee` on a disk that needs SLOW seconds for an fsync of a round's state."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

from splitee.cli.main import main

SLOW = 3
LARGE = 10_000  # bytes: of a file, not of a folder, and of none of facts


def main_on_a_slow_disk(environment: Mapping[str, str]) -> None:
    """`environment`: variables besides."""
    fsync = os.fsync

    def slowly(descriptor: int) -> None:
        if os.fstat(descriptor).st_size > LARGE:
            time.sleep(SLOW)
        fsync(descriptor)

    os.fsync = slowly  # type: ignore[assignment]
    os.environ.update(environment)
    main()
