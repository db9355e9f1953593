# SPDX-License-Identifier: Apache-2.0
"""Waits with a time limit for other processes or threads."""

from __future__ import annotations

import time
from collections.abc import Callable

LONG = 60.0  # seconds


def until(
    condition: Callable[[], object], what: Callable[[], object] = lambda: "", long: float = LONG
) -> None:
    """Wait until `condition` holds; after `long` seconds the test fails with the message `what()`."""
    deadline = time.monotonic() + long
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.02)
