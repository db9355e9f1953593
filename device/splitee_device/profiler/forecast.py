# SPDX-License-Identifier: Apache-2.0
"""The expected costs of all cuts on this device, as measured or as the device has changed since."""

from __future__ import annotations

from dataclasses import dataclass

from msgspec.structs import replace

from splitee_device.profiler.choice import Choice, Preference, choose
from splitee_device.profiler.cost_model import CutRow, Work, predict
from splitee_device.profiler.costs import Measured


@dataclass(frozen=True)
class Forecast:
    """A measurement of at least one cut, the work of a round, and the preference for the choice."""

    measured: Measured
    work: Work
    prefer: Preference

    def rows(self) -> tuple[CutRow, ...]:
        return predict(self.measured, self.work)

    def choose(self) -> Choice:
        """The cut to take; its `cut` is None if none fits."""
        return choose(self.rows(), self.prefer, self.measured, self.work)

    def adjusted(self, slowdown: float, more_memory: int, available: int | None) -> Forecast:
        """The forecast for the same device if all that it computes takes `slowdown` times as long.

        Args:
            more_memory: bytes that training needs beyond the measurement, at any cut.
            available: bytes that training may use in total; None: unknown.
        """
        costs = {
            cut: replace(found.slower(slowdown), memory=found.memory + more_memory)
            for cut, found in self.measured.costs.items()
        }
        return Forecast(replace(self.measured, costs=costs, available=available), self.work, self.prefer)
