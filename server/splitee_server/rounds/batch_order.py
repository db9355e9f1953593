# SPDX-License-Identifier: Apache-2.0
"""The order in which a round's batches are trained: free for Averaging, defined if a trunk is shared."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Container, Mapping
from typing import Generic, Literal, TypeVar

from splitee_server.learning.lanes import lane_of

Batch = TypeVar("Batch")
OfferResult = Literal["taken", "duplicate", "ahead"]
Order = Literal["step", "joint", "share", "device", "any"]
SortKey = tuple[float, int, str]


def sort_key(order: Order, device: str, step: int, steps: int) -> SortKey:
    """The sort key of a batch of a device that sends `steps` batches; the smallest key is next.

    step: each device's batch of a step, then those of the next step. joint: likewise, with the devices of a
    step in the order of `splitee_server.learning.lanes.in_order`. share: the batch of the device that has
    done the smallest share of its own. device: all batches of one device, then those of the next.
    """
    if order == "share":
        return step / steps, 0, device
    if order == "device":
        return 0, 0, device
    return step, lane_of(device) if order == "joint" else 0, device


class BatchOrder(Generic[Batch]):
    """Keeps batches that have arrived and returns them in order, each (device, step) exactly once."""

    def __init__(
        self,
        order: Order,
        steps: Mapping[str, int],
        window: int,
        *,
        waits: Container[str] = (),
        remote: Container[str] = (),
    ) -> None:
        """A round in which no batch has arrived yet.

        Args:
            order: any: as they arrive; the others are those of `sort_key`.
            steps: batches each device will send, from step 0.
            window: how many steps ahead a batch may be held.
            waits: devices none of whose batches is handed out before `admit`, in the order "any".
            remote: devices whose batches another rank hands out, which `advance` notes.
        """
        self._steps = dict(steps)
        self._window = window
        self._next = dict.fromkeys(self._steps, 0)
        self._unfinished = {device for device, count in self._steps.items() if count}
        self._next_expected = dict.fromkeys(self._steps, 0)  # the step after the last one that has arrived
        self._held: dict[str, dict[int, Batch]] = {device: {} for device in self._steps}
        self._order = order
        self._waiting = {device for device in self._steps if device in waits}
        self._ready: deque[str] = deque()  # order "any": devices whose next batch is here
        self._in_a_row = 0  # batches in a row of the current device
        self._heap = [self._sort_key(device) for device in self._unfinished if device not in remote]  # a heap
        heapq.heapify(self._heap)
        self._last_open: int | None = None  # order "joint": batches of later steps wait
        self._due: set[str] = set()  # devices with batches up to there that have not been handed out

    def next_step(self, device: str) -> int:
        """All of the device's steps below this one have been handed out."""
        return self._next[device]

    def has_next(self, device: str) -> bool:
        """Whether the device's next batch has arrived and waits for its turn."""
        return self._next[device] in self._held[device]

    def lacks(self, device: str) -> bool:
        """Whether the device's next batch, or one before the last that has arrived, is missing."""
        held, following = self._held[device], self._next[device]
        return following not in held or self._next_expected[device] - following > len(held)

    def next_expected(self, device: str) -> int:
        """The step after the device's last batch that has arrived."""
        return self._next_expected[device]

    def held_of(self, device: str) -> int:
        """Number of the device's batches that have arrived and not been handed out."""
        return len(self._held[device])

    def held(self) -> int:
        """Number of batches that have arrived and not been handed out."""
        return sum(len(batches) for batches in self._held.values())

    def __contains__(self, device: str) -> bool:
        return device in self._steps

    def offer(self, device: str, step: int, batch: Batch) -> OfferResult:
        """Keep a batch that has arrived, if it is new and within the window."""
        held, following = self._held[device], self._next[device]
        if step < following or step in held:
            return "duplicate"
        if step >= min(following + self._window, self._steps[device]):
            return "ahead"
        held[step] = batch
        self._next_expected[device] = max(self._next_expected[device], step + 1)
        if step == following and self._order == "any" and device not in self._waiting:
            self._ready.append(device)
        return "taken"

    def admit(self, device: str) -> None:
        """Begin to hand out the device's batches."""
        if device in self._waiting:
            self._waiting.remove(device)
            if self.has_next(device):
                self._ready.append(device)

    def take(self) -> tuple[str, int, Batch] | None:
        """The next batch in order; None if it has not arrived."""
        device = self._next_device()
        if device is None:
            return None
        step = self._next[device]
        batch = self._held[device].pop(step)
        self._note_next(device, step + 1)
        if self._order == "any":
            self._go_on_with(device)
        else:
            heapq.heappop(self._heap)
            if step + 1 < self._steps[device]:
                heapq.heappush(self._heap, self._sort_key(device))
        return device, step, batch

    def _go_on_with(self, device: str) -> None:
        """Take as many batches of a device in a row as a window holds: its trunk is in the caches then."""
        self._in_a_row = (self._in_a_row + 1) % self._window
        if not self.has_next(device):
            self._in_a_row = 0
        elif self._in_a_row:
            self._ready.appendleft(device)
        else:
            self._ready.append(device)

    def advance(self, device: str, step: int) -> None:
        """Note that another rank has handed out the device's batches below `step`."""
        self._next_expected[device] = step
        self._note_next(device, step)

    def _note_next(self, device: str, step: int) -> None:
        self._next[device] = step
        if step == self._steps[device]:
            self._unfinished.discard(device)
        if self._last_open is not None and (step > self._last_open or device not in self._unfinished):
            self._due.discard(device)

    def open_step(self, step: int) -> None:
        """In the order "joint": hand out batches up to this step, and none of later steps."""
        self._last_open = step
        self._due = {device for device in self._unfinished if self._next[device] <= step}

    def is_step_complete(self) -> bool:
        """Whether all batches up to the last opened step have been handed out, by any rank."""
        return self._last_open is not None and not self._due

    def drop(self, device: str) -> None:
        """Continue this round without `device`."""
        self._steps.pop(device)
        self._next.pop(device)
        self._next_expected.pop(device)
        self._held.pop(device)
        self._unfinished.discard(device)
        self._waiting.discard(device)
        self._due.discard(device)

    def is_finished(self, device: str) -> bool:
        """Whether all of the device's batches have been handed out."""
        return device not in self._unfinished

    def has_missing(self) -> bool:
        """Whether a batch has not been handed out."""
        return bool(self._unfinished)

    def missing(self) -> list[str]:
        """The devices whose batches have not all been handed out."""
        return sorted(self._unfinished)

    def _sort_key(self, device: str) -> SortKey:
        return sort_key(self._order, device, self._next[device], self._steps[device])

    def _next_device(self) -> str | None:
        """The device whose turn it is, when its next batch is here."""
        if self._order == "any":
            while self._ready:
                device = self._ready.popleft()
                if device in self._steps:
                    return device
            return None
        while self._heap and self._heap[0][-1] not in self._steps:
            heapq.heappop(self._heap)
        if not self._heap or (self._last_open is not None and self._heap[0][0] > self._last_open):
            return None
        device = self._heap[0][-1]
        return device if self.has_next(device) else None
