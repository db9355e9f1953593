# SPDX-License-Identifier: Apache-2.0
"""Chooses the devices of a round if not all take part.

The choice depends on the seed, the round and the commit, so that a server that was killed makes the
same one. A device's random number does not change when other devices come or go.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache

from splitee.protocol.run_spec import RunSpec
from splitee.training.seeds import seed_for


def pick(spec: RunSpec, number: int, last_picked: Mapping[str, int], least: int = 1) -> list[str]:
    """The devices of round `number`, in the order of their names.

    Args:
        last_picked: the round that each device that could take part was last picked for; 0: none.
        least: devices that the round needs.
    """
    size = sample_size(spec.sample, len(last_picked), least)
    if size == len(last_picked):
        return sorted(last_picked)

    def rank(device: str) -> tuple[int, int, str]:
        waited_since = last_picked[device] if spec.sample_by == "waiting" else 0
        return waited_since, _lot(spec.seed, number, device), device

    return sorted(sorted(last_picked, key=rank)[:size])


def sample_size(sample_of: str, devices: int, least: int = 1) -> int:
    """Number of devices in a round, out of `devices`; a share is rounded up.

    Args:
        sample_of: as RunSpec.sample.
        least: number that the round needs; capped at `devices`.
    """
    if sample_of == "all":
        return devices
    wanted = -(-devices * int(sample_of[:-1]) // 100) if sample_of.endswith("%") else int(sample_of)
    return min(max(wanted, least), devices)


@lru_cache(maxsize=1 << 15)
def _lot(seed: int, number: int, device: str) -> int:
    return seed_for(seed, "sample", number, device)


def picks(spec: RunSpec, devices: Mapping[str, object]) -> Iterator[list[str]]:
    """The devices of each round of a run in which all are always available."""
    last_picked = dict.fromkeys(devices, 0)
    for number in range(1, spec.rounds + 1):
        picked = pick(spec, number, last_picked)
        last_picked |= dict.fromkeys(picked, number)
        yield picked
