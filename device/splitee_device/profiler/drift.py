# SPDX-License-Identifier: Apache-2.0
"""Compares training with what was expected, and reports a difference of several rounds and its cause.

The expectation for a cut is the profiler's prediction, or the first rounds if there is none. A round departs
from it if its step takes 30 % more or less, if its memory is 30 % more, or if less memory is available than
the cut needs. After ROUNDS such rounds in a row, the new figures become the expectation: a device that stays
slow is not reported again, one that recovers is. The next ROUNDS rounds do not count, so that a device that
has changed its cut settles before it may change again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import median
from typing import Literal, TypeVar

from splitee.cli.words import mib, milliseconds
from splitee_device.agent.monitor import CutRequest
from splitee_device.profiler.forecast import Forecast
from splitee_device.profiler.meter import Meter, Round

ROUNDS = 3
TOLERANCE = 1.3  # factor above or below the expectation

Kind = Literal["slower", "faster", "memory", "short"]
T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Expected:
    """For one cut: seconds per step, bytes at the peak, and bytes that must be available (0: unknown)."""

    step: float
    memory: int
    needed: int = 0


@dataclass(frozen=True)
class Deviation:
    """Consecutive rounds that were not as expected. `step` and `memory`: their medians."""

    kind: Kind
    rounds: int
    expected: Expected
    step: float
    memory: int
    last: Round

    def describe(self, cores_measured: float | None) -> str:
        """The finding, with figures and causes. `cores_measured`: usable cores when it was measured."""
        before = f"for {self.rounds} rounds"
        if self.kind == "memory":
            return f"{before} {mib(self.memory)} at the peak, {mib(self.expected.memory)} were expected"
        if self.kind == "short":
            return f"{before} {mib(self.last.available or 0)} available, {mib(self.expected.needed)} needed"
        change = self.step / self.expected.step
        words = (
            f"{before} {milliseconds(self.step)} a step, {milliseconds(self.expected.step)} were expected "
            f"({change:.2g} times)"
        )
        if self.kind == "faster":
            return words
        return f"{words}: {self.last.conditions.causes(cores_measured)}"


class DriftDetector:
    """Knows the expectation for each cut, and decides when enough rounds have departed from it."""

    def __init__(self, rounds: int, forecast: Forecast | None = None) -> None:
        """`rounds`: in a row. Without a forecast the first rounds at a cut are the reference."""
        self._rounds = rounds
        self._forecast = forecast
        self._references: dict[int, Expected] = {}
        self._seen: list[Round] = []
        self._kind: Kind | None = None
        self._cut = 0
        self._rounds_to_skip = 0
        self.slowdown = 1.0  # relative to the reference, as expected by now
        self.more_memory = 0  # bytes relative to the reference, as expected by now
        self._is_shortage_known = False

    def note(self, cut: int, actual: Round) -> Deviation | None:
        """Records a finished round at `cut`; returns a departure if this round completes one."""
        if cut != self._cut:
            self._cut, self._seen, self._kind = cut, [], None
        if self._rounds_to_skip:
            self._rounds_to_skip -= 1
            return None
        reference = self._reference(cut)
        if reference is None:
            self._learn(cut, actual)
            return None
        expected = replace(
            reference, step=reference.step * self.slowdown, memory=reference.memory + self.more_memory
        )
        kind = self._kind_of(actual, expected)
        self._seen = [*self._seen, actual] if kind == self._kind else [actual]
        self._kind = kind
        if kind is None or len(self._seen) < self._rounds:
            return None
        step = median(round_.step for round_ in self._seen)
        memory = int(median(round_.memory for round_ in self._seen))
        self._update_expectation(kind, step / reference.step, memory - reference.memory)
        return Deviation(kind, self._rounds, expected, step, memory, actual)

    def _kind_of(self, actual: Round, expected: Expected) -> Kind | None:
        short = actual.available is not None and actual.available < expected.needed
        if not short:
            self._is_shortage_known = False
        elif not self._is_shortage_known:
            return "short"
        if actual.memory > TOLERANCE * expected.memory:
            return "memory"
        if actual.step > TOLERANCE * expected.step:
            return "slower"
        return "faster" if TOLERANCE * actual.step < expected.step else None

    def _update_expectation(self, kind: Kind, slowdown: float, more_memory: int) -> None:
        if kind == "memory":
            self.more_memory = more_memory
        elif kind == "short":
            self._is_shortage_known = True
        else:
            self.slowdown = slowdown
        self._rounds_to_skip, self._seen, self._kind = self._rounds, [], None

    def _reference(self, cut: int) -> Expected | None:
        if cut not in self._references and self._forecast is not None:
            row, reserve = self._forecast.rows()[cut - 1], self._forecast.work.reserve
            self._references[cut] = Expected(row.step, row.needed - row.code, row.needed + reserve)
        return self._references.get(cut)

    def _learn(self, cut: int, actual: Round) -> None:
        self._seen.append(actual)
        if len(self._seen) == self._rounds:
            step = median(round_.step for round_ in self._seen)
            self._references[cut] = Expected(step, max(round_.memory for round_ in self._seen))
            self._seen = []


class DriftMonitor:
    """Observes one device in one run: the agent's `RoundMonitor`."""

    def __init__(
        self, meter: Meter, *, rounds: int = ROUNDS, forecast: Forecast | None = None, adapts: bool = False
    ) -> None:
        """`adapts`: it may request another cut; this needs a forecast."""
        self._meter = meter
        self._detector = DriftDetector(rounds, forecast)
        self._forecast = forecast
        self._adapts = adapts

    def steps(self, batches: Iterator[T]) -> Iterator[T]:
        """Passes on the batches of a training round as they come."""
        return self._meter.steps(batches)

    def end_round(self, number: int, cut: int) -> CutRequest | None:
        """The round whose `steps` were passed on is committed. Returns a request for another cut, if any."""
        actual = self._meter.round()
        found = None if actual is None else self._detector.note(cut, actual)
        if found is None:
            return None
        words = found.describe(self._forecast.measured.cores if self._forecast else None)
        cut_request, advice = self._advise(cut, found)
        log.warning("round %d: %s%s", number, words, advice)
        return cut_request

    def _advise(self, cut: int, found: Deviation) -> tuple[CutRequest | None, str]:
        if self._forecast is None:
            return None, ""
        adjusted = self._forecast.adjusted(
            self._detector.slowdown, self._detector.more_memory, found.last.available
        )
        choice = adjusted.choose()
        if choice.cut is None:
            return None, f"; {choice.reason}"
        if choice.cut == cut:
            return None, f"; cut {cut} still suits it best"
        if not self._adapts:
            return None, f"; --adapt-cut would request {choice.reason}"
        return CutRequest(choice.cut, choice.reason), f"; requesting {choice.reason}"
