"""The exit's threshold: what adaptive inference makes of held-out pictures, for every share of offloads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from splitee.errors import ConfigError
from splitee.inference.manifest import Point
from splitee.inference.uncertainty import Array

POINTS = 101


@dataclass(frozen=True)
class HeldOut:
    """Of N held-out pictures: the exit's uncertainty in 0..1, whether exit and trunk are right; each (N,)."""

    uncertainty: Array
    exit_right: npt.NDArray[np.bool_]
    trunk_right: npt.NDArray[np.bool_]


def curve(held_out: HeldOut) -> tuple[Point, ...]:
    """Accuracy and offload share at up to POINTS thresholds: 0, the uncertainties' quantiles, and 1."""
    quantiles = np.quantile(held_out.uncertainty, np.linspace(0, 1, POINTS), method="inverted_cdf")
    # Rounded up: a threshold still takes the sample that it is the uncertainty of.
    thresholds = np.unique(np.concatenate([[0.0], np.minimum(np.round(quantiles + 5e-6, 5), 1.0), [1.0]]))
    return tuple(_at(held_out, float(threshold)) for threshold in thresholds)


def _at(held_out: HeldOut, threshold: float) -> Point:
    local = held_out.uncertainty <= threshold
    right = np.where(local, held_out.exit_right, held_out.trunk_right)
    return Point(threshold, float(right.mean()), float(1 - local.mean()))


def choose(points: Sequence[Point], *, max_drop: float | None, max_offload: float | None) -> Point:
    """The point with the fewest offloads within `max_drop` of always asking the trunk, or else the most
    accurate one within `max_offload`.

    Raises ConfigError: not exactly one of the two is given.
    """
    if (max_drop is None) == (max_offload is None):
        raise ConfigError("give one of --max-drop and --max-offload, not both")
    if max_offload is not None:
        allowed = [point for point in points if point.offload_share <= max_offload]
        return max(allowed, key=lambda point: (point.accuracy, -point.offload_share))
    assert max_drop is not None
    always = max(points, key=lambda point: point.offload_share)
    allowed = [point for point in points if point.accuracy >= always.accuracy - max_drop - 1e-9]
    return min(allowed, key=lambda point: (point.offload_share, -point.accuracy))
