# SPDX-License-Identifier: Apache-2.0
"""Which rank takes the batches of which device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import groupby

from splitee_server.learning.reduction import in_order, lane_of

Bound = Callable[[str], Sequence[int] | None]


class LaneDealing:
    """Deals ranges of lanes, in the order of the ranks, so that each sums its devices for itself."""

    def __init__(self, ranks: int) -> None:
        self._ranks = ranks

    def deal(self, devices: Collection[str]) -> dict[str, int]:
        """The rank of each of these devices, about as many for each."""
        dealt: dict[str, int] = {}
        for _, lane in groupby(in_order(devices), lane_of):
            those = list(lane)
            middle = len(dealt) + len(those) / 2
            dealt |= dict.fromkeys(those, int(middle * self._ranks / len(devices)))
        return dealt


class Dealing:
    """Deals devices by their ids, each to a rank that has the fewest; a device stays where it is.

    It decides about the load alone: weights do not depend on which rank has trained a trunk.
    """

    def __init__(self, ranks: int, bound: Bound = lambda _device: None) -> None:
        """`bound`: the ranks whose broker a device uses; None: any rank can serve it."""
        self._ranks = range(ranks)
        self._bound = bound
        self._rank_of: dict[str, int] = {}

    def deal(self, devices: Iterable[str]) -> dict[str, int]:
        """The rank of each of these devices."""
        able = {device: self._bound(device) or self._ranks for device in sorted(devices)}
        dealt = {
            device: self._rank_of[device]
            for device in able
            if device in self._rank_of and self._rank_of[device] in able[device]
        }
        having = Counter(dealt.values())
        for device, ranks in able.items():
            if device not in dealt:
                dealt[device] = min(ranks, key=lambda rank: (having[rank], rank))
                having[dealt[device]] += 1
        self._rank_of |= dealt
        return dealt
