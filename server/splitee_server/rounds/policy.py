# SPDX-License-Identifier: Apache-2.0
"""How the server treats missing, late or many devices, and when it ends a run early."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from splitee_server.rounds.windows import Budget, queue_events


@dataclass(frozen=True)
class Policy:
    """The policy of one run; times are in seconds."""

    devices: int  # that must have joined before the first round
    quorum: int  # that a round needs at least
    missing: Literal["wait", "skip"] = "wait"  # what to do about devices that are late at the deadline
    floor: float = 60.0  # seconds a round may always take
    memory: int = 1 << 30  # bytes of features that may be on their way, or wait to be trained
    release: float = 600.0  # seconds for the devices to take their models
    quarantine_after: int = 20  # refused messages of a device; 0: never
    readmit: tuple[str, ...] = ()  # devices that are let back from quarantine
    most_images: int = 10_000_000  # of a device, for training and held out each
    stop_after: int = 0  # evaluated rounds without a better one, after which the run ends; 0: never
    resident: int = 0  # trunks in memory at a time, if each device has one; 0: all

    @property
    def budget(self) -> Budget:
        """The budget of batches on their way: half of the link's events."""
        return Budget(self.memory, queue_events(self.devices) // 2)
