# SPDX-License-Identifier: Apache-2.0
"""How the server deals with devices that are missing, late or many, and when it ends a run early."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Policy:
    """Of one run; times are in seconds."""

    devices: int  # that must have joined before the first round
    quorum: int  # that a round needs at least
    missing: Literal["wait", "skip"] = "wait"  # for who has not finished at the deadline
    floor: float = 60.0  # seconds a round may always take
    memory: int = 1 << 30  # bytes of features that may wait to be trained
    release: float = 600.0  # seconds for the devices to take their models
    quarantine_after: int = 20  # messages of a device that are refused; 0: never
    readmit: tuple[str, ...] = ()  # devices that are let back from quarantine
    most_images: int = 10_000_000  # of a device, for training and held out each
    stop_after: int = 0  # evaluated rounds without a better one, after which the run ends; 0: never
    resident: int = 0  # trunks in memory at a time, where each device has one; 0: all

    def room(self, window: int, batch_bytes: int, participants: int) -> int:
        """Batches that a device may have unacknowledged: the window, within its share of the memory.

        Args:
            batch_bytes: of the features of one batch, in float32.
        """
        share = self.memory // (batch_bytes * max(participants, 1))
        return max(1, min(window, share))
