# SPDX-License-Identifier: Apache-2.0
"""The form of a check, and of its result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from splitee_broker.checks.context import CheckContext

Verdict = Literal["ok", "limited", "missing", "unknown"]
"""Limited: a fleet can train, at a cost. Missing: it cannot. Unknown: this machine cannot test it."""


@dataclass(frozen=True)
class Result:
    """The result of a check.

    Attributes:
        found: one line for the user.
        value: the measured figure: messages, connections, bytes, seconds; None: there is none.
        needed: the smallest figure without any limitation.
    """

    verdict: Verdict
    found: str
    value: float | None = None
    needed: float | None = None


@dataclass(frozen=True)
class Check:
    """A check of one feature that a broker must have.

    Attributes:
        run: performs it; may raise `ConnectionLost`, which counts as missing.
        seconds: its time limit.
        seconds_a_device: additional time for each device.
        needed_by_others: if it fails, no other check is meaningful.
    """

    name: str
    run: Callable[[CheckContext], Result]
    seconds: float = 4.0
    seconds_a_device: float = 0.0
    needed_by_others: bool = False

    def limit(self, devices: int) -> float:
        """Its time limit in seconds with so many devices."""
        return self.seconds + devices * self.seconds_a_device
