# SPDX-License-Identifier: Apache-2.0
"""Leaves out of training the devices whose loss is far above that of the others."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean, median

FEWEST = 3  # least number of devices among which an outlier can be found


class LossFilter:
    """Leaves a device out of a round when, in its last one, its loss was above a multiple of the median.

    Wrong labels, or features that do not determine them, cannot be learnt together with the others': their
    loss stays high while the others' falls. The loss of a device that is left out is still computed, and the
    device takes part again when its loss allows that.
    """

    def __init__(self, multiple: float) -> None:
        """`multiple`: of the median over the devices of a round; 0: no device is left out."""
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
        """The losses that were added for a device in this round."""
        return self._losses.get(device, [])

    def forget(self, device: str) -> None:
        """A device drops out of the round: its losses in it do not count."""
        self._losses.pop(device, None)

    def end_round(self) -> None:
        """Decide which devices the next round leaves out; one without a batch in this round is unchanged."""
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
