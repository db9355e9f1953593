# SPDX-License-Identifier: Apache-2.0
"""Estimates when a demo will end, over its parts, which run one after another."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

CERTAIN = 0.04  # share of a part that must be done before its pace is used, if there was no guess for it
TRUSTED = 0.2  # share from which the pace alone counts, if there was a guess


@dataclass
class Part:
    """One part. `guess`: seconds that it should take; None: nothing is known yet."""

    name: str
    guess: float | None = None
    began: float | None = None
    done: float = 0.0  # share
    took: float | None = None  # seconds, once it has ended

    def left(self, now: float) -> float | None:
        """Seconds; None: not known."""
        if self.took is not None:
            return 0.0
        if self.began is None:
            return self.guess
        elapsed = now - self.began
        by_pace = elapsed / self.done if self.done else 0.0
        if self.guess is None:
            return by_pace - elapsed if self.done >= CERTAIN else None
        trust = min(self.done / TRUSTED, 1.0)
        return max(trust * by_pace + (1 - trust) * self.guess - elapsed, 0.0)


class Estimate:
    """The parts in their order. Beginning one ends those before it."""

    def __init__(self, *names: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._parts = {name: Part(name) for name in names}
        self._clock = clock

    @property
    def to_do(self) -> tuple[str, ...]:
        """The parts that have not ended; the last one does not."""
        return tuple(part.name for part in self._parts.values() if part.took is None)

    @property
    def under_way(self) -> str | None:
        """The current part; None: none has begun, or all have ended."""
        return next((part.name for part in self._begun() if part.took is None), None)

    def expect(self, name: str, seconds: float) -> None:
        """Set the guess for a part; ignored if there is no such part."""
        if name in self._parts:
            self._parts[name].guess = seconds

    def advance(self, name: str, done: float) -> None:
        """Note that a part has begun, and which share of it is done; the share never decreases."""
        if name not in self._parts:
            return
        now = self._clock()
        for part in self._parts.values():
            if part.name == name:
                part.began = now if part.began is None else part.began
                part.done = min(max(part.done, done), 1.0)
                return
            if part.took is None:
                part.took = now - (now if part.began is None else part.began)

    def elapsed(self, name: str) -> float:
        """Seconds that a part has taken so far."""
        part = self._parts[name]
        if part.took is not None:
            return part.took
        return 0.0 if part.began is None else self._clock() - part.began

    def left_of(self, name: str) -> float | None:
        """Seconds until a part is done; None: not known yet."""
        return self._parts[name].left(self._clock())

    def left(self) -> float | None:
        """Seconds until all is done; None: not known yet."""
        now = self._clock()
        found = [part.left(now) for part in self._parts.values()]
        return None if None in found else sum(seconds or 0.0 for seconds in found)

    def _begun(self) -> list[Part]:
        return [part for part in self._parts.values() if part.began is not None]
