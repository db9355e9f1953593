# SPDX-License-Identifier: Apache-2.0
"""Quarantine: after too many refused messages of a device, the server ignores it in this run."""

from __future__ import annotations

import logging
from collections import Counter

from splitee.errors import MalformedMessage, Reason
from splitee_server.members.members import Members

COUNTED: tuple[Reason, ...] = ("malformed", "oversized", "retained", "untrainable", "flood", "unhandled")
"""Reasons that count against a device. Messages of another run, or before its join, may only be late."""

log = logging.getLogger(__name__)


class Quarantine:
    """Counts refused messages per device, and decides which devices are in quarantine."""

    def __init__(self, members: Members, after: int) -> None:
        """`after`: refused messages that put a device in quarantine; 0: none ever is."""
        self._members = members
        self._after = after
        self._refused: Counter[str] = Counter()
        self._unknown_devices: set[str] = set()  # in quarantine without having joined

    def check(self, device: str) -> None:
        """Raises MalformedMessage: the device is in quarantine."""
        member = self._members.get(device)
        if device in self._unknown_devices or (member is not None and member.quarantined):
            raise MalformedMessage("from a device in quarantine", "quarantined")

    def note(self, device: str, reason: Reason, times: int = 1) -> bool:
        """Count refused messages of a device; True: they put it in quarantine."""
        if not self._after or reason not in COUNTED:
            return False
        before = self._refused[device]
        self._refused[device] += times
        if not before < self._after <= self._refused[device]:
            return False
        if device in self._members:
            self._members.quarantine(device)
        else:
            self._unknown_devices.add(device)
        log.warning(
            "%s is in quarantine: %d messages were refused, the last as %s; --readmit %s lets it back",
            device,
            self._refused[device],
            reason,
            device,
        )
        return True
