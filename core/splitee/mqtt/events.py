# SPDX-License-Identifier: Apache-2.0
"""What a link delivers, and the bounded queue between the network thread and who reads it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Message:
    """One publication that matched a subscription.

    Attributes:
        age: of a retained one, seconds since it was published, by the broker's count; None: it does not tell.
    """

    topic: str
    payload: bytes
    retained: bool = False
    response_topic: str | None = None
    correlation: bytes | None = None
    age: int | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Connected:
    """The link is up. `fresh`: the broker kept no session, so messages in flight may be lost."""

    fresh: bool


@dataclass(frozen=True)
class Disconnected:
    """The link is down; it comes back by itself, with a `Connected`."""

    reason: str


@dataclass(frozen=True)
class Overflow:
    """Messages were lost here, between the one before and the one behind: nobody received them in time."""


@dataclass(frozen=True)
class Woken:
    """Another thread has something for whoever reads: see `Link.wake`."""


Event = Message | Connected | Disconnected | Overflow | Woken
