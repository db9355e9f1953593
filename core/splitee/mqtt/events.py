# SPDX-License-Identifier: Apache-2.0
"""The events that a link delivers."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Message:
    """One publication that matched a subscription.

    Attributes:
        age: of a retained message, seconds since its publication, as counted by the broker; None: unknown.
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
    """The link is down; it reconnects by itself and then delivers `Connected`."""

    reason: str


@dataclass(frozen=True)
class Overflow:
    """Messages were dropped at this place in the sequence because the queue was full."""


@dataclass(frozen=True)
class Woken:
    """Another thread has work for the reader: see `Link.wake`."""


Event = Message | Connected | Disconnected | Overflow | Woken
