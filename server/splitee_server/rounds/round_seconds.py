# SPDX-License-Identifier: Apache-2.0
"""How the server's time of a round is spent."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from splitee.clock import Clock
from splitee.protocol.fields import RunPhase
from splitee.protocol.fleet import RoundSeconds

Kind = Literal["training", "waiting", "statistics", "evaluation", "aggregation", "commit"]
KIND_OF: dict[RunPhase, Kind] = {
    "gather": "waiting",
    "train": "waiting",  # except its training steps
    "statistics": "statistics",
    "evaluate": "evaluation",
}


class RoundClock:
    """Measures each phase; time between two phases is measured only by `of`.

    The gathering before the first round of this process does not count: it takes as long as people need.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._spent: defaultdict[Kind, float] = defaultdict(float)
        self._kind: Kind | None = None  # of the current phase
        self._opened = clock()
        self._trained = 0.0  # seconds in training steps, when the round began
        self._has_trained = False

    def open(self, kind: RunPhase) -> None:
        """Start a phase, and end the one before."""
        self.close()
        self._has_trained |= kind == "train"
        counts = kind != "gather" or self._has_trained
        self._kind, self._opened = KIND_OF.get(kind) if counts else None, self._clock()

    def close(self) -> None:
        """End the phase."""
        if self._kind is not None:
            self._spent[self._kind] += self._clock() - self._opened
        self._kind = None

    @contextmanager
    def of(self, kind: Kind) -> Iterator[None]:
        """Count the time inside the context as this kind."""
        began = self._clock()
        yield
        self._spent[kind] += self._clock() - began

    def take(self, trained: float) -> RoundSeconds:
        """The times of the round that has ended; starts those of the next.

        Args:
            trained: seconds in training steps so far, of all rounds.
        """
        self.close()
        training = trained - self._trained
        spent = {kind: max(seconds, 0.0) for kind, seconds in self._spent.items()}
        spent["training"] = max(training, 0.0)
        spent["waiting"] = max(spent.get("waiting", 0.0) - training, 0.0)
        self._trained = trained
        self._spent.clear()
        return RoundSeconds(**{kind: round(seconds, 4) for kind, seconds in spent.items()})
