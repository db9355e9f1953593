# SPDX-License-Identifier: Apache-2.0
"""Which rank trains on the batches of which device."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import accumulate

from splitee_server.learning.lanes import LANES, lane_of

Bound = Callable[[str], Sequence[int] | None]


class LaneAssignment:
    """Gives each rank a range of lanes, in the order of the ranks, so that a rank can sum over its devices.

    A range that is a whole node of the tree of lanes has a single sum. Bounds that allow large nodes are
    therefore preferred, even if they are off by an eighth of a rank's share of the devices.
    """

    def __init__(self, ranks: int) -> None:
        self._ranks = ranks
        self._bounds = [0] * ranks + [LANES]

    def assign_ranks(self, devices: Collection[str]) -> dict[str, int]:
        """The rank of each of these devices."""
        in_lane = Counter(map(lane_of, devices))
        before = list(accumulate((in_lane[lane] for lane in range(LANES)), initial=0))
        inner = [self._bound(before, rank) for rank in range(1, self._ranks)]
        self._bounds = [0, *inner, LANES]
        return {device: bisect_right(inner, lane_of(device)) for device in devices}

    def lanes(self, rank: int) -> range:
        """The lanes of a rank, since the last `assign_ranks`."""
        return range(self._bounds[rank], self._bounds[rank + 1])

    def _bound(self, before: Sequence[int], rank: int) -> int:
        """The first lane of a rank. `before`: how many devices each lane has before it."""
        share = before[-1] / self._ranks
        off = [abs(count - rank * share) for count in before]
        allowed = max(min(off), share / 8)
        able = [lane for lane in range(LANES + 1) if off[lane] <= allowed]
        return max(able, key=lambda lane: (lane & -lane, -off[lane]))


class RankAssignment:
    """Gives each device, in the order of ids, to a rank that has the fewest; a device keeps its rank.

    This affects only the load: weights do not depend on which rank has trained a trunk.
    """

    def __init__(self, ranks: int, bound: Bound = lambda _device: None) -> None:
        """`bound`: the ranks whose broker a device uses; None: any rank can serve it."""
        self._ranks = range(ranks)
        self._bound = bound
        self._rank_of: dict[str, int] = {}

    def assign_ranks(self, devices: Iterable[str]) -> dict[str, int]:
        """The rank of each of these devices."""
        able = {device: self._bound(device) or self._ranks for device in sorted(devices)}
        assigned = {
            device: self._rank_of[device]
            for device in able
            if device in self._rank_of and self._rank_of[device] in able[device]
        }
        having = Counter(assigned.values())
        for device, ranks in able.items():
            if device not in assigned:
                assigned[device] = min(ranks, key=lambda rank: (having[rank], rank))
                having[assigned[device]] += 1
        self._rank_of |= assigned
        return assigned
