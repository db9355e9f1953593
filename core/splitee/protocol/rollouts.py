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

MOST_ROLLOUTS = 20  # that the server tells of: all that are open, then the newest
MOST_WAVES = 20

RolloutState = Literal["running", "paused", "stopped", "finished", "rolled back", "expired"]
UpdateState = Literal[
    "queued", "offered", "downloading", "trying", "in service", "failed", "rolled back", "expired"
]


class Wave(msgspec.Struct, frozen=True):
    """The devices that a rollout adds at once.

    Attributes:
        devices: devices of the wave.
        in_service: those of them on which the release is in service.
        failed: those on which it failed, or was rolled back by the device itself.
        asleep: those that are offline and have not decided, unless they are trying it.
        late: those that are online and have not decided in the time that the next wave waits for them.
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
        kind: what is released.
        version: what is released, for people.
        state: of the whole; a rollout that is stopped has more failures than it may.
        reason: why it is in this state; one line for people.
        created: seconds since the epoch, by the server's clock.
        expires: seconds since the epoch, from which on no device is offered it any more.
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
        latest: version that the server has for the device; that in service where there is no other.
        state: what has become of `latest` on the device; none: the server has nothing for it.
        have: bytes of it that the device has, while it downloads them.
        size: bytes of it.
        reason: why it failed; one line for people.
        rollout: that it is part of; "": none.
        wave: of the rollout, from 1.
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
    """What a device has in service, and what is on its way to it: the server's view, retained.

    Attributes:
        model: of its model.
        software: of the software that it runs.
    """

    model: Update = Update()
    software: Update = Update()


class Install(JsonMessage, frozen=True):
    """Home Assistant's click: the device shall have the latest now, before its wave.

    Attributes:
        kind: of which kind of release.
    """

    kind: ReleaseKind
