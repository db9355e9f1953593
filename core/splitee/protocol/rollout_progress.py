# SPDX-License-Identifier: Apache-2.0
"""How far a rollout has come, counted over its waves."""

from __future__ import annotations

from typing import Literal, get_args

from splitee.protocol.rollouts import Rollout, Wave

DeviceState = Literal["in service", "failed", "asleep", "late", "waiting", "later"]
STATES: tuple[DeviceState, ...] = get_args(DeviceState)


def waiting_in(wave: Wave) -> int:
    """Devices of a wave that may still decide in time; 0 if the server's counts are inconsistent."""
    return max(wave.devices - wave.in_service - wave.failed - wave.asleep - wave.late, 0)


def devices_by_state(rollout: Rollout) -> dict[DeviceState, int]:
    """Its number of devices by state; devices of waves after the current one count as `later`."""
    begun, later = rollout.waves[: rollout.wave], rollout.waves[rollout.wave :]
    return {
        "in service": sum(wave.in_service for wave in begun),
        "failed": sum(wave.failed for wave in begun),
        "asleep": sum(wave.asleep for wave in begun),
        "late": sum(wave.late for wave in begun),
        "waiting": sum(waiting_in(wave) for wave in begun),
        "later": sum(wave.devices for wave in later),
    }
