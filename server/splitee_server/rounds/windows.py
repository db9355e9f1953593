# SPDX-License-Identifier: Apache-2.0
"""The number of batches that each participant of a phase may have on their way, bounded in total.

A batch is on its way from its publication until its acknowledgement: in the server's event
queue, or decoded and waiting for its turn. The rooms of a phase together never exceed a `Budget`
of bytes and events; a batch in parts takes one event per part. (A process that was killed may
leave as many batches behind again: half of the queue's events are not for batches.)

If the budget is too small for one batch of each participant, a few of them have a window of one batch.
With each batch taken the window passes to the device whose batch is needed first: it always reaches the
device that the order waits for. A device that is away keeps its window until it is back or dropped.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from splitee.mqtt.sending_speed import LEAST_PART
from splitee.protocol.cut_batch import EVALUATION_BATCH
from splitee.protocol.parts import PART_OVERHEAD
from splitee.protocol.rounds import Participant, RoundOpen
from splitee.protocol.run_spec import RunSpec
from splitee_server.rounds.batch_order import Order, SortKey, sort_key

EVENTS = 256  # per device for its batches, and as many for its other messages
LEAST_EVENTS = 1 << 17
LABEL_BYTES = 6  # bytes per sample: label, the exit's label and its entropy, two each
HEADER = 1024
LONGEST_GATHERING = 0.01  # seconds


def queue_events(devices: int) -> int:
    """Size of the server's event queue; half of it is for batches."""
    return LEAST_EVENTS + 2 * EVENTS * devices


def gathered(devices: int) -> float:
    """Seconds for which messages gather before the server reads them: 0.01 for 1,000 devices, less for fewer.

    Each read wakes a thread, which costs as much as a message. Large fleets do not notice the delay.
    """
    return min(LONGEST_GATHERING, devices / 100_000)


def batch_cost(samples: int, feature_shape: tuple[int, ...], max_packet: int) -> Budget:
    """The largest cost of a batch: float32 features with labels and the exit's predictions.

    Its parts may be as small as those of a device behind a slow link.
    """
    size = samples * (4 * prod(feature_shape) + LABEL_BYTES) + HEADER
    return Budget(size, -(-size // (min(max_packet, LEAST_PART) - PART_OVERHEAD)))


@dataclass(frozen=True)
class Budget:
    """Limits for all batches on their way; also the cost of a single batch."""

    size: int  # bytes
    events: int

    def fits(self, cost: Budget) -> int:
        """Number of batches of this cost that fit."""
        return min(self.size // cost.size, self.events // cost.events)

    def share(self, participants: int) -> Budget:
        return Budget(self.size // participants, self.events // participants)


class Windows:
    """The rooms of one phase's participants."""

    def __init__(
        self,
        steps: Mapping[str, int],
        costs: Mapping[str, Budget],
        budget: Budget,
        *,
        window: int,
        order: Order,
        served: Sequence[str] = (),
    ) -> None:
        """Nothing is on its way yet.

        Args:
            steps: batches each device sends.
            costs: of one batch of each.
            window: the largest room.
            order: in which the devices' batches are taken.
            served: the devices in the order in which they are served, if not all are served at once.
        """
        self._steps = {device: count for device, count in steps.items() if count}
        self._order = order
        self._places = {device: place for place, device in enumerate(served)}
        share = budget.share(max(len(self._steps), 1))
        self._rooms = {device: min(window, share.fits(costs[device])) for device in self._steps}
        self._rotates = not all(self._rooms.values())
        self._closed: list[SortKey] = []  # a heap of those that wait for a window, by their turns
        if self._rotates:
            dearest = Budget(
                max(costs[device].size for device in self._steps),
                max(costs[device].events for device in self._steps),
            )
            self._rooms = dict.fromkeys(self._steps, 0)
            self._closed = sorted(self._sort_key(device, 0) for device in self._steps)
            for _ in range(max(1, budget.fits(dearest))):
                self._open_next()

    def room(self, device: str) -> int:
        """Number of batches that the device may have on their way."""
        return self._rooms.get(device, 0)

    def note_taken(self, device: str, step: int) -> str | None:
        """Note that a batch was taken; returns the device that gets its window, if windows rotate."""
        if not self._rotates:
            return None
        self._rooms[device] = 0
        if step + 1 < self._steps[device]:
            heapq.heappush(self._closed, self._sort_key(device, step + 1))
        return self._open_next()

    def drop(self, device: str) -> str | None:
        """Remove a device; returns the device that gets its window, if windows rotate."""
        self._steps.pop(device, None)
        had = self._rooms.pop(device, 0)
        return self._open_next() if self._rotates and had else None

    def _sort_key(self, device: str, step: int) -> SortKey:
        """The sort key of a device; the smallest has the next window."""
        if self._places:
            return self._places[device], 0, device
        return sort_key(self._order, device, step, self._steps[device])

    def _open_next(self) -> str | None:
        while self._closed:
            *_, device = heapq.heappop(self._closed)
            if device in self._steps:
                self._rooms[device] = 1
                return device
        return None


def open_windows(
    opened: RoundOpen,
    participants: Mapping[str, Participant],
    spec: RunSpec,
    feature_shape: Callable[[int], tuple[int, ...]],
    max_packet: int,
    budget: Budget,
    *,
    order: Order,
    served: Sequence[str] = (),
) -> Windows:
    """The windows of `participants` in a phase. `feature_shape`: of one sample at a cut."""
    samples = EVALUATION_BATCH if opened.batches == "evaluate" else spec.batch_size
    steps = {device: part.steps for device, part in participants.items()}
    costs = {
        device: batch_cost(samples, feature_shape(part.cut), max_packet)
        for device, part in participants.items()
    }
    return Windows(steps, costs, budget, window=spec.window, order=order, served=served)
