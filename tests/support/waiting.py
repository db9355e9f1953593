# SPDX-License-Identifier: Apache-2.0
"""Waiting for what another process or thread does, with an end."""

from __future__ import annotations

import time
from collections.abc import Callable

LONG = 60.0  # seconds


def until(
    condition: Callable[[], object], what: Callable[[], object] = lambda: "", long: float = LONG
) -> None:
    """Until `condition` holds; after `long` seconds the test fails with what `what` says."""
    deadline = time.monotonic() + long
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.02)
