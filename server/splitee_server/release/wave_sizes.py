# SPDX-License-Identifier: Apache-2.0
"""How many devices each wave of a rollout reaches, and in which order."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Sequence

from splitee.errors import ConfigError
from splitee.protocol.release_orders import SHARE
from splitee.protocol.rollouts import MOST_WAVES

FORM = "expected counts or shares of the devices, as 1,10%,100%"


def read_waves(text: str) -> tuple[str, ...]:
    """`1,10%,100%` as waves. Raises ConfigError."""
    waves = tuple(wave.strip() for wave in text.split(","))
    if len(waves) > MOST_WAVES:
        raise ConfigError(f"{len(waves)} waves; there may be {MOST_WAVES}")
    for wave in waves:
        if not re.fullmatch(SHARE, wave) or not float(wave.rstrip("%")):
            raise ConfigError(f"{wave!r} names no device; {FORM}")
    return waves


def wave_sizes(waves: Sequence[str], devices: int) -> tuple[int, ...]:
    """Devices up to each wave, strictly ascending.

    A share is rounded up. If a share is no larger than the wave before it, the fleet is too small for both,
    and they become one wave.

    Raises:
        ConfigError: a wave is of more devices than there are, or of fewer than the one before.
    """
    sizes: list[int] = []
    for wave in waves:
        size, before = devices_in(wave, devices), sizes[-1] if sizes else 0
        if size > devices:
            raise ConfigError(f"wave {wave}: there are only {devices} devices")
        if not size:
            raise ConfigError(f"wave {wave} names no device")
        if size < before or (size == before and (not wave.endswith("%") or wave in waves[: len(sizes)])):
            raise ConfigError(
                f"wave {wave} names no device: it is {size} of {devices} devices, and the waves before it "
                f"reach {before}; name them in ascending order"
            )
        if size > before:
            sizes.append(size)
    return tuple(sizes)


def devices_in(amount: str, devices: int) -> int:
    """A count, or a share of the devices, rounded up."""
    if not amount.endswith("%"):
        return int(amount)
    return math.ceil(float(amount[:-1]) * devices / 100 - 1e-9)


def in_wave_order(rollout: str, devices: Iterable[str]) -> list[str]:
    """The devices in the order of the waves: different for each rollout, always the same for one."""
    return sorted(devices, key=lambda device: hashlib.sha256(f"{rollout}/{device}".encode()).digest())
