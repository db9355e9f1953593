# SPDX-License-Identifier: Apache-2.0
"""Chooses the devices whose trunks are in memory if there is no room for all at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice


class Waves:
    """Serves devices in a defined order, a few at a time: when one leaves, the next one enters.

    A device leaves when it has finished the round and all before it have left: sums of trunks depend on
    their order.
    """

    def __init__(self, devices: Iterable[str], resident: int) -> None:
        """`devices`: in their order; `resident`: so many are served at a time, 0: all."""
        self._left = deque(devices)
        self._resident = resident or len(self._left)

    def served(self) -> Iterator[str]:
        """The devices that are served now."""
        return islice(self._left, self._resident)

    def drop(self, device: str) -> None:
        """Continue the round without a device."""
        if device in self._left:
            self._left.remove(device)

    def leaving(self, is_done: Callable[[str], bool]) -> Iterator[str]:
        """The devices that leave now, in order."""
        while self._left and is_done(self._left[0]):
            yield self._left.popleft()
