# SPDX-License-Identifier: Apache-2.0
"""What the agent needs of whoever watches its rounds; the profiler's drift monitor is the real one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class CutWish:
    """The cut that the device would rather have, and why."""

    cut: int
    reason: str


class RoundMonitor(Protocol):
    """Watches what the rounds of one device take."""

    def steps(self, batches: Iterator[T]) -> Iterator[T]:
        """Hands on the batches of a training round as they come."""

    def end_round(self, number: int, cut: int) -> CutWish | None:
        """The round whose `steps` were handed on counts; the wish for another cut, where it calls for one."""
