# SPDX-License-Identifier: Apache-2.0
"""The lanes in which devices are summed, and dealt to ranks: see reduction.py."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache

LANES = 64  # leaves of the tree


@lru_cache(maxsize=1 << 16)
def lane_of(device: str) -> int:
    """The lane of a device, 0..LANES - 1: nothing but its id decides it."""
    return hashlib.sha256(device.encode()).digest()[0] % LANES


def in_order(devices: Iterable[str]) -> list[str]:
    """The devices as `LaneSums.add` takes them: lane by lane, by id in each."""
    return sorted(devices, key=lambda device: (lane_of(device), device))
