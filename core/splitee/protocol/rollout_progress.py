# SPDX-License-Identifier: Apache-2.0
"""How far a rollout has come, counted over its waves."""

from __future__ import annotations

from typing import Literal, get_args

from splitee.protocol.rollouts import Rollout, Wave

DeviceState = Literal["in service", "failed", "asleep", "late", "waiting", "later"]
STATES: tuple[DeviceState, ...] = get_args(DeviceState)


def waiting_in(wave: Wave) -> int:
    """Devices of a wave that may still decide in time; what a server counts wrongly is none."""
    return max(wave.devices - wave.in_service - wave.failed - wave.asleep - wave.late, 0)


def devices_by_state(rollout: Rollout) -> dict[DeviceState, int]:
    """Its devices: those of waves up to the one under way by what they do, and those of `later` ones."""
    begun, later = rollout.waves[: rollout.wave], rollout.waves[rollout.wave :]
    return {
        "in service": sum(wave.in_service for wave in begun),
        "failed": sum(wave.failed for wave in begun),
        "asleep": sum(wave.asleep for wave in begun),
        "late": sum(wave.late for wave in begun),
        "waiting": sum(waiting_in(wave) for wave in begun),
        "later": sum(wave.devices for wave in later),
    }
