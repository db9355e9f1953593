# SPDX-License-Identifier: Apache-2.0
"""Exponential back-off with full jitter: delays as a generator, tries under a deadline."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator


def delays(
    first: float = 1.0, longest: float = 60.0, draw: Callable[[float, float], float] = random.uniform
) -> Iterator[float]:
    """Seconds to wait before each next try: uniform in [0, min(longest, first x 2^n)], without end.

    Full jitter spreads a fleet that lost its broker at one moment (M. Brooker, "Exponential Backoff And
    Jitter", AWS Architecture Blog, 2015).
    """
    ceiling = first
    while True:
        yield draw(0.0, ceiling)
        ceiling = min(longest, 2 * ceiling)


def tries(
    timeout: float | None,
    pauses: Iterator[float],
    wait: Callable[[float], object] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[float]:
    """Yields for each try the seconds until the next one; 0.0 marks the last try.

    The last try takes place at the deadline, so that a late start is still found. Without a
    timeout the tries never end.
    """
    deadline = None if timeout is None else clock() + timeout
    for pause in pauses:
        left = pause if deadline is None else max(0.0, deadline - clock())
        yield min(pause, left)
        if deadline is not None and left == 0.0:
            return
        wait(min(pause, left))
