# SPDX-License-Identifier: Apache-2.0
"""Messages of releases that the server keeps and sends out in waves: models, and the software itself."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from splitee.protocol.encoding import JsonMessage
from splitee.protocol.fields import (
    Count,
    EpochSeconds,
    Name,
    Positive,
    ReleaseKind,
    Text,
    Version,
)

MOST_ROLLOUTS = 20  # that the server publishes: all that are open, then the newest
MOST_WAVES = 20

RolloutState = Literal["running", "paused", "stopped", "finished", "rolled back", "expired"]
UpdateState = Literal[
    "queued", "offered", "downloading", "trying", "in service", "failed", "rolled back", "expired"
]


class Wave(msgspec.Struct, frozen=True):
    """The devices that a rollout adds at once.

    Attributes:
        devices: devices of the wave.
        in_service: those with the release in service.
        failed: those on which it failed, or that rolled it back themselves.
        asleep: those that are offline and have not decided, unless they are trying it.
        late: those that are online and have not decided within the time that the next wave waits for them.
    """

    devices: Count
    in_service: Count = 0
    failed: Count = 0
    asleep: Count = 0
    late: Count = 0


class Rollout(msgspec.Struct, frozen=True):
    """A release on its way to the fleet.

    Attributes:
        rollout: name of the rollout.
        kind: kind of release.
        version: version that is released, for people.
        state: state of the whole rollout; stopped: by an operator, or because of too many failures.
        reason: reason for this state; one line for people.
        created: seconds since the epoch, by the server's clock.
        expires: seconds since the epoch after which the release is offered to no device.
        max_failures: failures above which it stops.
        wave: number of the wave under way, from 1.
        waves: all of them.
    """

    rollout: Name
    kind: ReleaseKind
    version: Version
    state: RolloutState
    created: EpochSeconds
    expires: EpochSeconds
    max_failures: Count
    wave: Positive
    waves: Annotated[tuple[Wave, ...], Meta(min_length=1, max_length=MOST_WAVES)]
    reason: Text = ""


class Rollouts(JsonMessage, frozen=True):
    """The releases that the server keeps.

    Attributes:
        rollouts: the newest first.
    """

    rollouts: Annotated[tuple[Rollout, ...], Meta(max_length=MOST_ROLLOUTS)] = ()


class Update(msgspec.Struct, frozen=True):
    """Where a device stands with one kind of release.

    Attributes:
        installed: version in service; "": none, or unknown.
        latest: version that the server has for the device; the one in service if there is no other.
        state: state of `latest` on the device; none: the server has nothing for it.
        have: bytes of it that the device has, while it downloads them.
        size: bytes of it.
        reason: why it failed; one line for people.
        rollout: rollout that `latest` is part of; "": none.
        wave: wave of that rollout, from 1.
    """

    installed: Version = ""
    latest: Version = ""
    state: UpdateState | None = None
    have: Count = 0
    size: Count = 0
    reason: Text = ""
    rollout: Annotated[str, Meta(max_length=64)] = ""
    wave: Count = 0


class DeviceUpdate(JsonMessage, frozen=True):
    """The versions that a device has in service and that are on their way to it, as the server knows them.

    Attributes:
        model: its model.
        software: the software that it runs.
    """

    model: Update = Update()
    software: Update = Update()


class Install(JsonMessage, frozen=True):
    """A click in Home Assistant: the device gets the latest release now, before its wave.

    Attributes:
        kind: kind of release.
    """

    kind: ReleaseKind
