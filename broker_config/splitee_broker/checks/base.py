# SPDX-License-Identifier: Apache-2.0
"""What a check is, and what it finds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from splitee_broker.checks.workbench import Workbench

Verdict = Literal["ok", "limited", "missing", "unknown"]
"""Limited: a fleet trains, at a cost. Missing: it does not. Unknown: this machine cannot try it."""


@dataclass(frozen=True)
class Result:
    """What a check has found.

    Attributes:
        found: for people, in one line.
        value: the figure that it is about: messages, connections, bytes, seconds; None: it has none.
        needed: the least figure with which nothing is limited.
    """

    verdict: Verdict
    found: str
    value: float | None = None
    needed: float | None = None


@dataclass(frozen=True)
class Check:
    """One thing that a broker must do.

    Attributes:
        run: finds it out; may raise `Lost`, which counts as missing.
        seconds: time that it has.
        seconds_a_device: more of it for each device.
        needed_by_others: without it no other check says anything.
    """

    name: str
    run: Callable[[Workbench], Result]
    seconds: float = 4.0
    seconds_a_device: float = 0.0
    needed_by_others: bool = False

    def limit(self, devices: int) -> float:
        """Seconds that it has with so many devices."""
        return self.seconds + devices * self.seconds_a_device
