# SPDX-License-Identifier: Apache-2.0
"""A weighted mean over devices that is the same, bit for bit, however the devices are grouped to be summed.

A sum of floating-point numbers depends on its order. Here it is fixed: each device belongs to one of `LANES`
lanes by its id; in a lane, devices are added in the order of their ids; the sums of lanes are added pairwise
in a binary tree: 0 + 1, 2 + 3, ..., then those. A process can therefore sum a range of lanes by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from splitee_server.learning.lanes import LANES, lane_of


@dataclass(frozen=True)
class Partial:
    """The sum over the devices of lanes `first`..`first` + `lanes` - 1: a node of the tree.

    Attributes:
        lanes: a power of two, of which `first` is a multiple.
        sums: weight * tensor over the devices that hold a tensor, by name.
        weights: over the same devices, by name.
    """

    first: int
    lanes: int
    sums: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)

    def is_followed_by(self, other: Partial) -> bool:
        """Whether both are the two halves of one node."""
        return self.lanes == other.lanes and self.first % (2 * self.lanes) == 0

    def joined(self, other: Partial) -> Partial:
        """The node whose halves are `self` and `other`; it replaces both."""
        self.take(other.sums, other.weights)
        return Partial(self.first, 2 * self.lanes, self.sums, self.weights)

    @torch.no_grad()
    def take(self, sums: Mapping[str, Tensor], weights: Mapping[str, float]) -> None:
        """Add sums, in place; tensors with new names are kept without a copy."""
        for name, tensor in sums.items():
            if name in self.sums:
                self.sums[name].add_(tensor)
                self.weights[name] += weights[name]
            else:
                self.sums[name], self.weights[name] = tensor, weights[name]


class LaneSums:
    """Sums up devices in the order of `in_order`, with one partial sum per level of the tree."""

    def __init__(self, first_lane: int = 0, dtype: torch.dtype = torch.float64) -> None:
        """Begin an empty sum.

        Args:
            first_lane: devices of the lanes before it are not summed here.
            dtype: of the sums; those of integers are float64 in any case, which holds them exactly.
        """
        self._first = first_lane
        self._dtype = dtype
        self._next = first_lane  # the first lane that is not complete
        self._last = ""  # device of that lane
        self._nodes: list[Partial] = []  # complete, from left to right; no two are halves of one
        self._open = Partial(first_lane, 1)

    def add(
        self,
        device: str,
        tensors: Mapping[str, Tensor],
        weight: float | Mapping[str, float],
        *,
        takes_over: bool = False,
    ) -> None:
        """Add the next device's tensors, which are copied.

        Args:
            weight: above 0; by name, if it is not the same for all tensors.
            takes_over: change them in place instead; the caller must not use them afterwards.

        Raises:
            ValueError: the device is out of order.
        """
        lane = lane_of(device)
        if lane < self._next or (lane == self._next and device <= self._last):
            raise ValueError(f"device {device!r} of lane {lane} comes after {self._last!r} of {self._next}")
        self._complete(lane)
        self._last = device
        weights = weight if isinstance(weight, Mapping) else dict.fromkeys(tensors, weight)
        for name, tensor in tensors.items():
            own = float(weights[name])
            dtype = self._dtype if tensor.is_floating_point() else torch.float64
            value = tensor.detach()
            is_ours = takes_over or value.dtype != dtype
            product = value.to(dtype).mul_(own) if is_ours else value * own
            self._open.take({name: product}, {name: own})  # rounded before it is added

    def partials(self, end: int = 0) -> list[Partial]:
        """The sums, as the fewest nodes of the tree, from left to right; their lanes are then complete.

        `end`: the first lane whose devices others sum; 0: the one after the last device's.
        """
        self._complete(end or self._next + bool(self._open.sums))
        return [node for node in self._nodes if node.sums]

    def merge(self, partials: Iterable[Partial]) -> None:
        """Add another's sums over the lanes that follow; their tensors are changed in place.

        Raises:
            ValueError: these lanes do not follow.
        """
        self.partials()
        for node in partials:
            if not self._next <= node.first <= LANES - node.lanes:
                raise ValueError(f"lanes from {self._next} on are next, these are from {node.first} on")
            self._complete(node.first)
            self._push(node)
            self._next = node.first + node.lanes
            self._open = Partial(self._next, 1)

    def means(self) -> dict[str, Tensor]:
        """The weighted means by name, in place of the sums.

        Raises:
            ValueError: not all lanes have been summed.
        """
        if self._first:
            raise ValueError(f"a mean is taken over all {LANES} lanes, not from lane {self._first} on")
        self._complete(LANES)
        (root,) = self._nodes
        return {name: total.div_(root.weights[name]) for name, total in root.sums.items()}

    def _complete(self, lane: int) -> None:
        """Complete the lanes below `lane`; lanes without devices make the largest nodes at once."""
        while self._next < lane:
            node, lanes = self._open, 1
            if not node.sums:
                while self._next % (2 * lanes) == 0 and self._next + 2 * lanes <= lane:
                    lanes *= 2
                node = Partial(self._next, lanes)
            self._push(node)
            self._next += lanes
            self._open, self._last = Partial(self._next, 1), ""

    def _push(self, node: Partial) -> None:
        while self._nodes and self._nodes[-1].is_followed_by(node):
            node = self._nodes.pop().joined(node)
        self._nodes.append(node)
