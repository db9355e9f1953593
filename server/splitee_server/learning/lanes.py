# SPDX-License-Identifier: Apache-2.0
"""Lanes: fixed groups of devices, in which they are summed and divided among ranks (see reduction.py)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache

LANES = 64  # leaves of the tree


@lru_cache(maxsize=1 << 16)
def lane_of(device: str) -> int:
    """The lane of a device, 0..LANES - 1: it depends only on the device's id."""
    return hashlib.sha256(device.encode()).digest()[0] % LANES


def in_order(devices: Iterable[str]) -> list[str]:
    """The devices in the order that `LaneSums.add` needs: lane by lane, by id in each."""
    return sorted(devices, key=lambda device: (lane_of(device), device))
