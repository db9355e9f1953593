# SPDX-License-Identifier: Apache-2.0
"""Chooses the exit's threshold from the accuracy of adaptive inference on held-out images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from splitee.errors import ConfigError
from splitee.inference.combination import TRUNK_ALONE, Combination
from splitee.inference.manifest import Point
from splitee.inference.uncertainty import Array
from splitee.protocol.accuracies import ReleasedThreshold
from splitee.statistics import Z

POINTS = 101
LEAST_IMAGES = 200  # needed to choose a threshold
MAX_DROP = 0.02  # largest loss of accuracy, compared with the better of exit and trunk

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class HeldOut:
    """N held-out images: the exit's uncertainty in 0..1, and whether predictions are right; each (N,).

    `offloaded_right`: for the trunk's prediction, or its combination with the exit's.
    """

    uncertainty: Array
    exit_right: npt.NDArray[np.bool_]
    offloaded_right: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.uncertainty)


@dataclass(frozen=True)
class Calibration:
    """When a model predicts by itself, the curve of held-out images, and how offloaded ones are predicted.

    Without images there are no points.
    """

    chosen: ReleasedThreshold
    points: tuple[Point, ...] = ()
    combination: Combination = TRUNK_ALONE


def calibrate(held_out: HeldOut, threshold: float, combination: Combination = TRUNK_ALONE) -> Calibration:
    """The threshold that `choose` finds within MAX_DROP; with too few images `threshold` stays.

    Args:
        combination: the one for which `held_out` says whether offloaded images are predicted right.
    """
    if not len(held_out):
        return Calibration(ReleasedThreshold(threshold=threshold))
    if len(held_out) < LEAST_IMAGES:
        images, point = 0, _point_at(held_out, threshold)
    else:
        images, point = len(held_out), choose(held_out, max_drop=MAX_DROP, max_offload=None)
    chosen = ReleasedThreshold(
        threshold=point.threshold,
        images=images,
        expected_offload=round(point.offload_share, 6),
        expected_accuracy=round(point.accuracy, 6),
    )
    return Calibration(chosen, curve(held_out), combination)


def curve(held_out: HeldOut) -> tuple[Point, ...]:
    """Accuracy and offload share at up to POINTS thresholds: 0, the uncertainties' quantiles, and 1."""
    quantiles = np.quantile(held_out.uncertainty, np.linspace(0, 1, POINTS), method="inverted_cdf")
    # Rounded up, so that a threshold still includes the sample whose uncertainty it is.
    thresholds = np.unique(np.concatenate([[0.0], np.minimum(np.round(quantiles + 5e-6, 5), 1.0), [1.0]]))
    return tuple(_point_at(held_out, float(threshold)) for threshold in thresholds)


def _point_at(held_out: HeldOut, threshold: float) -> Point:
    local = held_out.uncertainty <= threshold
    right = np.where(local, held_out.exit_right, held_out.offloaded_right)
    return Point(threshold, float(right.mean()), float(1 - local.mean()))


def choose(held_out: HeldOut, *, max_drop: float | None, max_offload: float | None) -> Point:
    """The point with the fewest offloads that is surely within `max_drop` of the better of exit and offload,
    or else the most accurate one within `max_offload`.

    Raises ConfigError: not exactly one of the two is given.
    """
    if (max_drop is None) == (max_offload is None):
        raise ConfigError("give one of --max-drop and --max-offload, not both")
    points = curve(held_out)
    if max_offload is not None:
        allowed = [point for point in points if point.offload_share <= max_offload]
        return max(allowed, key=lambda point: (point.accuracy, -point.offload_share))
    assert max_drop is not None
    return points[_highest_within(held_out, np.array([point.threshold for point in points]), max_drop)]


def _highest_within(held_out: HeldOut, thresholds: npt.NDArray[np.float64], max_drop: float) -> int:
    """The index of the highest of the ascending `thresholds` that is surely within `max_drop`.

    Each threshold is tested twice on the same images: adaptive against offload, and against the exit. It
    passes a test if the lower end of the 95 % interval of the difference is above -max_drop. Of many
    thresholds some would pass by chance. Each series of tests therefore begins where adaptive is identical to
    the other predictor (offload at 0, the exit at 1) and ends at the first failure. In such a fixed sequence,
    all that pass hold together with the confidence of one (Angelopoulos et al., Learn then Test, 2021). So a
    threshold that passes both is within `max_drop` of the better predictor in 95 % of cases. If none passes,
    there are too few images to distinguish exit and offload. Then the threshold with the highest lower ends
    is chosen.
    """
    order = np.argsort(held_out.uncertainty, kind="stable")
    local = np.searchsorted(held_out.uncertainty[order].astype(np.float64), thresholds, side="right")
    exit_alone = _sums((held_out.exit_right & ~held_out.offloaded_right)[order])
    offload_alone = _sums((held_out.offloaded_right & ~held_out.exit_right)[order])
    count = len(held_out)
    over_offload = paired_lower(exit_alone[local], offload_alone[local], count)
    over_exit = paired_lower(
        offload_alone[-1] - offload_alone[local], exit_alone[-1] - exit_alone[local], count
    )
    passed = np.logical_and.accumulate(over_offload >= -max_drop)
    passed &= np.logical_and.accumulate((over_exit >= -max_drop)[::-1])[::-1]
    if passed.any():
        return int(np.flatnonzero(passed)[-1])
    return int(np.minimum(over_offload, over_exit).argmax())


def _sums(flags: npt.NDArray[np.bool_]) -> Counts:
    """(N,) -> (N + 1,): how many of the first 0, 1, ... N flags are set."""
    return np.concatenate([[0], np.cumsum(flags)])


def paired_lower(gains: Counts, losses: Counts, count: int) -> npt.NDArray[np.float64]:
    """The lower end of the 95 % interval of the difference in accuracy between two predictors.

    Both have predicted the same `count` images. Agresti and Min's interval for matched proportions
    (Statistics in Medicine 24, 2005): Wald's with half an image added to each cell of the table of right and
    wrong.

    Args:
        gains: images that only the first predicts right, in each of several comparisons.
        losses: images that only the second predicts right.
    """
    adjusted = count + 2
    difference = (gains - losses) / adjusted
    variance = ((gains + losses + 1) / adjusted - difference**2) / adjusted
    lower: npt.NDArray[np.float64] = difference - Z * np.sqrt(variance)
    return lower
