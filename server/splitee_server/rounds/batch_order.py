# SPDX-License-Identifier: Apache-2.0
"""The order in which a round's batches are trained: defined for Sequential, free for Averaging."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Container, Mapping
from typing import Generic, Literal, TypeVar

Batch = TypeVar("Batch")
Offer = Literal["taken", "duplicate", "ahead"]
Order = Literal["step", "share", "device", "any"]


class BatchOrder(Generic[Batch]):
    """Holds what has arrived and hands it out in order; each (device, step) exactly once."""

    def __init__(
        self, order: Order, steps: Mapping[str, int], window: int, *, waits: Container[str] = ()
    ) -> None:
        """A round in which nothing has come yet.

        Args:
            order: step: each device's batch of a step, then of the next; share: the batch of whoever has done
                the least share of its own; device: one device's after another's; any: as they are here.
            steps: batches each device will send, from step 0.
            window: how far ahead one may be held.
            waits: devices none of whose batches is handed out before `admit`, in the order "any".
        """
        self._steps = dict(steps)
        self._window = window
        self._next = dict.fromkeys(self._steps, 0)
        self._unfinished = {device for device, count in self._steps.items() if count}
        self._seen = dict.fromkeys(self._steps, 0)  # the step behind the last one that has come
        self._held: dict[str, dict[int, Batch]] = {device: {} for device in self._steps}
        self._order = order
        self._waiting = {device for device in self._steps if device in waits}
        self._ready: deque[str] = deque()  # order "any": devices whose next batch is here
        self._turn = 0  # batches that the present one has had in a row
        self._turns = [
            self._rank(device) for device in sorted(self._steps) if self._steps[device]
        ]  # else a heap
        heapq.heapify(self._turns)

    def next_step(self, device: str) -> int:
        """All of the device's steps below this one have been handed out."""
        return self._next[device]

    def has_next(self, device: str) -> bool:
        """Whether the device's next batch is here, and waits for its turn."""
        return self._next[device] in self._held[device]

    def lacks(self, device: str) -> bool:
        """Whether the device's next batch, or one before its last that has come, is not here."""
        held, following = self._held[device], self._next[device]
        return following not in held or self._seen[device] - following > len(held)

    def seen(self, device: str) -> int:
        """The step behind the last one of the device that has come."""
        return self._seen[device]

    def held_of(self, device: str) -> int:
        """Batches of the device that are here and have not been handed out."""
        return len(self._held[device])

    def held(self) -> int:
        """Batches that are here and have not been handed out."""
        return sum(len(batches) for batches in self._held.values())

    def __contains__(self, device: str) -> bool:
        return device in self._steps

    def offer(self, device: str, step: int, batch: Batch) -> Offer:
        """A batch has arrived; it is kept when it is new and within the window."""
        held, following = self._held[device], self._next[device]
        if step < following or step in held:
            return "duplicate"
        if step >= min(following + self._window, self._steps[device]):
            return "ahead"
        held[step] = batch
        self._seen[device] = max(self._seen[device], step + 1)
        if step == following and self._order == "any" and device not in self._waiting:
            self._ready.append(device)
        return "taken"

    def admit(self, device: str) -> None:
        """From now on the device's batches are handed out."""
        if device in self._waiting:
            self._waiting.remove(device)
            if self.has_next(device):
                self._ready.append(device)

    def take(self) -> tuple[str, int, Batch] | None:
        """The next batch in order, when it is here."""
        device = self._next_device()
        if device is None:
            return None
        step = self._next[device]
        batch = self._held[device].pop(step)
        self._next[device] = step + 1
        if step + 1 == self._steps[device]:
            self._unfinished.discard(device)
        if self._order == "any":
            self._go_on_with(device)
        else:
            heapq.heappop(self._turns)
            if step + 1 < self._steps[device]:
                heapq.heappush(self._turns, self._rank(device))
        return device, step, batch

    def _go_on_with(self, device: str) -> None:
        """A device has as many batches in a row as a window holds: its trunk's weights are in the caches."""
        self._turn = (self._turn + 1) % self._window
        if not self.has_next(device):
            self._turn = 0
        elif self._turn:
            self._ready.appendleft(device)
        else:
            self._ready.append(device)

    def advance(self, device: str, step: int) -> None:
        """The device's batches below `step` have been handed out elsewhere."""
        self._next[device] = self._seen[device] = step
        if step == self._steps[device]:
            self._unfinished.discard(device)

    def drop(self, device: str) -> None:
        """Go on without `device` in this round."""
        self._steps.pop(device)
        self._next.pop(device)
        self._seen.pop(device)
        self._held.pop(device)
        self._unfinished.discard(device)
        self._waiting.discard(device)

    def is_finished(self, device: str) -> bool:
        """Whether all of the device's batches have been handed out."""
        return device not in self._unfinished

    def missing(self) -> list[str]:
        """The devices whose batches have not all been handed out."""
        return sorted(self._unfinished)

    def _rank(self, device: str) -> tuple[float, str]:
        """Whose turn it is: the device with the least rank."""
        if self._order == "share":
            return self._next[device] / self._steps[device], device
        return (self._next[device] if self._order == "step" else 0), device

    def _next_device(self) -> str | None:
        """The device whose turn it is, when its next batch is here."""
        if self._order == "any":
            while self._ready:
                device = self._ready.popleft()
                if device in self._steps:
                    return device
            return None
        while self._turns and self._turns[0][1] not in self._steps:
            heapq.heappop(self._turns)
        device = self._turns[0][1] if self._turns else ""
        return device if device and self.has_next(device) else None
