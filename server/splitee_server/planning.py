# SPDX-License-Identifier: Apache-2.0
"""Which cut every device of a fleet should take so that their rounds end together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from splitee.cli.words import three_digits
from splitee.protocol.fleet import Capability
from splitee.round_time import round_seconds

SLOWEST_LINK = 1.0  # bytes per second, a lower bound: a device may report any speed


@dataclass(frozen=True)
class Candidate:
    """A cut that fits a device, the seconds of its round, and its bytes per batch."""

    cut: int
    seconds: float
    bytes: int


@dataclass(frozen=True)
class Planned:
    """A device's cut in the plan; None where no cut fits it."""

    device: str
    cut: int | None
    seconds: float | None
    reason: str


def candidates(capability: Capability, steps: int, window: int) -> list[Candidate]:
    """The cuts that fit a device, each with its round of `steps` batches; an unknown link costs nothing."""
    found = []
    for cost in capability.cuts:
        if cost.fits:
            upload = cost.bytes / max(capability.upload, SLOWEST_LINK) if capability.upload else 0.0
            seconds = round_seconds(steps, cost.seconds, upload, capability.round_trip or 0.0, window)
            found.append(Candidate(cost.cut, seconds, cost.bytes))
    return found


def plan_fleet(by_device: Mapping[str, Sequence[Candidate]]) -> list[Planned]:
    """Choose cuts with the shortest time of the slowest device, and within it the deepest for each device.

    This time is the largest of the devices' own shortest times: cuts of other devices do not make a device
    faster, and a cut within this time delays nobody.
    """
    least = {device: min(choices, key=_seconds) for device, choices in by_device.items() if choices}
    slowest = max(least, key=lambda device: least[device].seconds, default=None)
    limit = least[slowest].seconds if slowest is not None else 0.0
    planned = []
    for device, choices in sorted(by_device.items()):
        if not choices:
            planned.append(Planned(device, None, None, "no cut fits it"))
            continue
        within = [choice for choice in choices if choice.seconds <= limit]
        best = max(within, key=lambda choice: choice.cut)
        planned.append(Planned(device, best.cut, best.seconds, _why(device == slowest, best, choices)))
    return planned


def _why(sets_the_time: bool, best: Candidate, choices: Sequence[Candidate]) -> str:
    if sets_the_time:
        return "the slowest: its fastest cut sets the fleet's time"
    deeper = next((choice for choice in choices if choice.cut > best.cut), None)
    if deeper is None:
        return "the deepest cut that fits it is within the fleet's time"
    return (
        f"the deepest within the fleet's time; cut {deeper.cut} would take {three_digits(deeper.seconds)} s"
    )


def _seconds(candidate: Candidate) -> float:
    return candidate.seconds
