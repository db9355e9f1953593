# SPDX-License-Identifier: Apache-2.0
"""Confidence intervals and tests for shares."""

from __future__ import annotations

import math

Z = 1.96  # of a 95 % interval


def wilson(hits: int, count: int, z: float = Z) -> tuple[float, float]:
    """The 95 % interval of the share behind `hits` of `count`; (0, 1) if `count` is 0.

    Wilson's score interval (1927), which keeps its coverage for few samples and shares near 0 and 1.
    """
    if not count:
        return 0.0, 1.0
    share = hits / count
    spread = 1 + z * z / count
    centre = (share + z * z / (2 * count)) / spread
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / spread
    return max(0.0, centre - half), min(1.0, centre + half)


def share_interval(share: float, count: int) -> tuple[float, float]:
    """`wilson` of a share in 0..1 of `count`."""
    return wilson(round(share * count), count)


def mcnemar_p_value(losses: int, gains: int) -> float:
    """The probability of at least `losses` heads in `losses + gains` throws of a fair coin.

    This is McNemar's exact test (1947), one-sided, of two models on the same samples: `losses` are right
    with the first model only, `gains` with the second only. A small value says that the second is worse.
    """
    throws = losses + gains
    as_many: float = sum(math.comb(throws, heads) for heads in range(losses, throws + 1)) / 2**throws
    return as_many
