# SPDX-License-Identifier: Apache-2.0
"""Combines one tensor of several devices: a mean with bounded shares, a trimmed mean, or a median."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from splitee.protocol.fields import Average
from splitee.protocol.run_spec import RunSpec
from splitee_server.learning.lanes import in_order
from splitee_server.learning.reduction import LaneSums

TRIMMED = 5  # one in so many values is left out at each end
FEWEST = 3  # least number of holders among which an outlier can be found
AT_ONCE = 1 << 20  # coordinates that are sorted together, to bound the memory


@dataclass(frozen=True)
class Rule:
    """How a run averages.

    Args:
        average: `mean` is weighted; in `trimmed` and `median`, taken of each coordinate, all devices count
            the same (Yin et al. 2018, arXiv 1803.01498). One or two holders of a tensor are averaged by
            `mean` in any case: without a majority it is unknown which of them is wrong.
        largest_share: of the weight in a mean that one of its n holders may have; at least 1/n.
    """

    average: Average = "mean"
    largest_share: float = 1.0

    @classmethod
    def of(cls, spec: RunSpec) -> Rule:
        return cls(spec.average, spec.largest_share)

    def combine(self, tensors: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
        """Combine `tensors` of one shape, in float64.

        Args:
            tensors: by device, at least one.
            weights: of these devices, each above 0.
        """
        if self.average == "mean" or len(tensors) < FEWEST:
            return weighted_mean(tensors, self.shares(weights, tensors))
        count = len(tensors)
        trim = (count - 1) // 2 if self.average == "median" else max(1, count // TRIMMED)
        return trimmed_mean([tensors[device] for device in sorted(tensors)], trim)

    def shares(self, weights: Mapping[str, float], holders: Iterable[str]) -> dict[str, float]:
        """Each holder's weight in the mean of a tensor."""
        devices = list(holders)
        found = bounded([weights[device] for device in devices], self.largest_share)
        return dict(zip(devices, found, strict=True))


def weighted_mean(tensors: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The weighted mean over devices, in float64, summed in the order of `LaneSums`."""
    sums = LaneSums()
    for device in in_order(tensors):
        sums.add(device, {"": tensors[device]}, weights[device])
    return sums.means()[""]


def trimmed_mean(tensors: Sequence[Tensor], trim: int) -> Tensor:
    """The mean of each coordinate's values without the `trim` smallest and the `trim` largest, in float64.

    With all but one or two values trimmed it is the median.
    """
    kept = len(tensors) - 2 * trim
    mean = torch.zeros_like(tensors[0], dtype=torch.float64, memory_format=torch.contiguous_format)
    sums, flat = mean.view(-1), [tensor.reshape(-1) for tensor in tensors]
    for first in range(0, len(sums), AT_ONCE):
        piece = slice(first, first + AT_ONCE)
        for row in torch.stack([one[piece] for one in flat]).sort(dim=0).values[trim : trim + kept]:
            sums[piece].add_(row)
    return mean / kept


def bounded(weights: Sequence[float], largest: float) -> Sequence[float]:
    """The same weights with a ceiling, so that none is more than the share `largest` of their sum.

    If `largest` is 1/n or less for n weights, all become equal.
    """
    if max(weights) <= largest * sum(weights):
        return weights
    if largest * len(weights) <= 1:
        return [1.0] * len(weights)
    descending = sorted(weights, reverse=True)
    ceiling = descending[0]
    for above in range(1, len(weights)):  # number of weights that reach the ceiling
        ceiling = largest * sum(descending[above:]) / (1 - above * largest)
        if descending[above] <= ceiling:
            break
    return [min(weight, ceiling) for weight in weights]
