"""How the server deals with devices that are missing, late or many."""

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
