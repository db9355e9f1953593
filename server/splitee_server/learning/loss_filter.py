# SPDX-License-Identifier: Apache-2.0
"""Which devices' batches the trunk learns from: not from those that fit the others' far worse than usual."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean, median

FEWEST = 3  # devices among which one can be told from the others


class LossFilter:
    """Leaves a device out of a round when, in its last one, its loss was above a multiple of the median.

    Wrong labels, or features that say nothing of them, cannot be learnt together with the others', and their
    loss stays high while the others' falls. A device that is left out is still measured, and takes part again
    when its loss allows it.
    """

    def __init__(self, multiple: float) -> None:
        """`multiple`: of the median over the devices of a round; 0: nobody is left out."""
        self._multiple = multiple
        self._losses: dict[str, list[float]] = {}
        self._left_out: set[str] = set()

    def leaves_out(self, device: str) -> bool:
        """Whether the round trains without this device's batches."""
        return device in self._left_out

    def add(self, device: str, loss: float) -> None:
        """The trunk's mean loss on a batch of the device in this round."""
        if self._multiple:
            self._losses.setdefault(device, []).append(loss)

    def losses(self, device: str) -> list[float]:
        """What was added of a device in this round."""
        return self._losses.get(device, [])

    def end_round(self) -> None:
        """Decide who takes part in the next round; a device that sent no batch in this one stays as it is."""
        means = {device: fmean(losses) for device, losses in self._losses.items()}
        if len(means) >= FEWEST:
            limit = self._multiple * median(means.values())
            self._left_out -= means.keys()
            self._left_out |= {device for device, loss in means.items() if loss > limit}
        self._losses = {}

    def state(self) -> list[str]:
        return sorted(self._left_out)

    def load(self, state: Iterable[str]) -> None:
        self._left_out, self._losses = set(state), {}
