# SPDX-License-Identifier: Apache-2.0
"""The monitor of rounds that the agent needs; the profiler's drift monitor implements it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class CutRequest:
    """The cut that the device requests, and why."""

    cut: int
    reason: str


class RoundMonitor(Protocol):
    """Measures what the rounds of one device cost."""

    def steps(self, batches: Iterator[T]) -> Iterator[T]:
        """Passes on the batches of a training round as they come."""

    def end_round(self, number: int, cut: int) -> CutRequest | None:
        """The round whose `steps` were passed on is committed. Returns a request for another cut, if any."""
