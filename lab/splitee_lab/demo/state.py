# SPDX-License-Identifier: Apache-2.0
"""The progress of a demo: what its displays show, and when it will probably end."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from splitee.cli.words import from_to, span
from splitee.protocol.fleet_view import DeviceView, FleetSnapshot
from splitee_lab.demo.estimate import Estimate
from splitee_lab.demo.inference import WAYS
from splitee_lab.demo.workload import Workload
from splitee_lab.methods.baselines import Progress

MEASURING, TRAINING, RELEASE, PREDICTIONS, BASELINES = (
    "profiler", "training", "release", "predictions", "baselines",
)  # fmt: skip
WORDS: Mapping[str | None, str] = {
    RELEASE: "release: models are exported and sent to the devices",
    PREDICTIONS: "predictions: released models on held-out images, alone and with the server",
}
EXACT = 600.0  # seconds; longer times are shown in minutes
RELEASE_SECONDS = 8.0  # an export takes about so long, before one is seen
PREDICTION_SECONDS = 0.003  # likewise each of an image's


@dataclass
class DeviceRow:
    """One device. `done`: rounds, with the fraction of the current one."""

    id: str
    done: float = 0.0
    cut: int | None = None
    loss: float | None = None
    exit: float | None = None
    trunk: float | None = None
    bytes: int = 0

    def take(self, view: DeviceView, sent: int) -> None:
        """`done` never decreases, even if the device has begun something else since."""
        self.done = max(self.done, view.done)
        self.cut = view.cut
        self.loss = self.loss if view.loss is None else view.loss
        self.exit = self.exit if view.exit_accuracy is None else view.exit_accuracy
        self.trunk = self.trunk if view.trunk_accuracy is None else view.trunk_accuracy
        self.bytes = max(self.bytes, view.bytes, sent)


@dataclass
class BaselineRow:
    """One baseline. `work`: of its training, relative to the others; `done`: share of it."""

    name: str
    work: float
    done: float = 0.0
    loss: float | None = None
    accuracy: float | None = None


class DemoState:
    """All parts of a demo, in order."""

    def __init__(
        self,
        devices: Sequence[str],
        rounds: int,
        *,
        measuring: float = 0.0,
        baselines: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`measuring`: most seconds that the devices' profilers take; 0: none measures."""
        parts = [TRAINING, RELEASE, PREDICTIONS, *([BASELINES] if baselines else [])]
        self._estimate = Estimate(*([MEASURING] if measuring else []), *parts, clock=clock)
        self._estimate.expect(MEASURING, measuring)
        self._estimate.expect(RELEASE, RELEASE_SECONDS)
        self._estimate.expect(PREDICTIONS, 3 * RELEASE_SECONDS)
        self.devices = {device: DeviceRow(device) for device in devices}
        self.baselines: dict[str, BaselineRow] = {}
        self.rounds = rounds
        self.measuring = measuring
        self._ratio: float | None = None

    def fleet(self, snapshot: FleetSnapshot) -> None:
        """Note the fleet's present state."""
        metrics = snapshot.metrics
        for view in snapshot.devices:
            measured = metrics.devices.get(view.id) if metrics else None
            if view.id in self.devices:
                self.devices[view.id].take(view, measured.bytes if measured else 0)
        if held_out := sum(view.held_out_samples for view in snapshot.devices):
            self._estimate.expect(PREDICTIONS, held_out * WAYS * PREDICTION_SECONDS)
        rows = self.devices.values()
        done = sum(min(row.done, self.rounds) for row in rows) / (self.rounds * len(rows))
        if snapshot.finished or done >= 1:
            self._estimate.advance(RELEASE, 0.0)
        elif done > 0:
            self._estimate.advance(TRAINING, done)
            if self._ratio is not None:
                left = self._estimate.left_of(TRAINING) or 0.0
                self._estimate.expect(BASELINES, self._ratio * (self._estimate.elapsed(TRAINING) + left))
        elif self.measuring and not all(row.cut for row in rows):
            self._estimate.advance(MEASURING, self.measured_for / self.measuring)

    def expect(self, workload: Workload) -> None:
        """Note how much there is to compute."""
        self._ratio = workload.ratio
        self.baselines = {name: BaselineRow(name, work) for name, work in workload.baselines.items()}

    def predicted(self, done: float) -> None:
        """Note the share of the released models' predictions that has been made."""
        self._estimate.advance(PREDICTIONS, done)

    def baseline(self, progress: Progress) -> None:
        """Note a baseline's progress."""
        row = self.baselines.setdefault(progress.name, BaselineRow(progress.name, 1.0))
        row.done, row.loss, row.accuracy = progress.step / progress.steps, progress.loss, progress.accuracy
        work = sum(one.work for one in self.baselines.values())
        self._estimate.advance(BASELINES, sum(one.work * one.done for one in self.baselines.values()) / work)

    @property
    def measured_for(self) -> float:
        """Seconds that the devices have measured for."""
        return min(self._estimate.elapsed(MEASURING), self.measuring) if self.measuring else 0.0

    @property
    def is_measuring(self) -> bool:
        return self._estimate.under_way == MEASURING

    @property
    def now(self) -> str:
        """What is being done: "training, round 2 of 5"."""
        part = self._estimate.under_way
        if part == MEASURING:
            return self._measuring()
        if part == TRAINING:
            at = [min(int(row.done) + 1, self.rounds) for row in self.devices.values()]
            return f"training, round {from_to(at, lambda number: f'{number:.0f}')} of {self.rounds}"
        if part == BASELINES:
            done = sum(row.accuracy is not None for row in self.baselines.values())
            return f"baselines, to compare with: {done} of {len(self.baselines)} done"
        return WORDS.get(part, "starting")

    def _measuring(self) -> str:
        waiting = sum(row.cut is None for row in self.devices.values())
        if not waiting:
            return "profiler: each device has chosen its cut"
        whom = "1 device measures" if waiting == 1 else f"{waiting} devices measure"
        return f"profiler: {whom} what cuts cost, {self.measured_for:.0f} s of at most {self.measuring:.0f} s"

    @property
    def end(self) -> str:
        """When all ends, and what that is: "done in about 2 min 5 s: training, release and baselines"."""
        *most, last = self._estimate.to_do
        parts = f"{', '.join(most)} and {last}" if most else last
        left = self._estimate.left()
        if left is None:
            return f"end not known yet: {parts}"
        return f"done in about {span(left) if left < EXACT else f'{left / 60:.0f} min'}: {parts}"
