# SPDX-License-Identifier: Apache-2.0
"""An invitation: its number of devices, its end, and the wrong codes that have come."""

from __future__ import annotations

import threading
import time
from collections import Counter
from enum import StrEnum

from splitee.pairing.proofs import is_same

TRIES = 5  # wrong codes, from anybody, that end an invitation
CERTIFICATES = 5  # for one name: a device that vanished before it stored its certificate may try again


class End(StrEnum):
    """Why an invitation has ended."""

    USED = "used"
    EXPIRED = "expired"
    GUESSED = "guessed at"


class Invitation:
    """One code; usable by several threads.

    Attributes:
        code: without the hyphens between its groups.
        name: of the device; empty: the device proposes one.
        until: when it ends, by the monotonic clock.
        left: how many devices may still join.
        wrong: how many wrong codes have come.
    """

    def __init__(self, code: str, name: str, seconds: float, count: int) -> None:
        """`count`: number of devices that may join with it."""
        self.code = code
        self.name = name
        self.until = time.monotonic() + seconds
        self.wrong = 0
        self.left = count
        self._places = count
        self._issued: Counter[str] = Counter()  # certificates, by the name that they are for
        self._lock = threading.Lock()

    @property
    def end(self) -> End | None:
        """Why it has ended; None: it is open."""
        if self.left == 0:
            return End.USED
        if self.wrong >= TRIES:
            return End.GUESSED
        return End.EXPIRED if time.monotonic() >= self.until else None

    def accept(self, given: bytes, expected: bytes) -> bool:
        """Whether a proof is right. A wrong one counts as a try, also if several connections guess at once.

        Once the invitation has ended, no proof is accepted and none is counted.
        """
        with self._lock:
            if self.end is not None:
                return False
            right = is_same(given, expected)
            self.wrong += not right
            return right

    def has_place_for(self, name: str) -> bool:
        """Whether a certificate may be issued for `name`.

        Each name takes a place with its first certificate, and keeps it, stored or not. So an invitation for
        one device gives nobody two names.
        """
        if name in self._issued:
            return self._issued[name] < CERTIFICATES
        return len(self._issued) < self._places

    def issued(self, name: str) -> None:
        """Records that a certificate was issued for `name`."""
        self._issued[name] += 1

    def use(self) -> None:
        """Records that a device has joined."""
        with self._lock:
            self.left -= 1
